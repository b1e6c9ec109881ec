"""`torchane train`: what it prints and leaves, and one message with the right exit code for every mistake."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from torchane.cli import training
from torchane.cli.progress import PlainReporter
from torchane.cli.streams import LostOutput
from torchane.train.lock import RunLock
from torchane.train.loop import Trainer

pytestmark = pytest.mark.usefixtures("own_handlers")

KEYS = {"run", "preset", "device", "steps", "train_loss", "valid_loss", "bits_per_byte", "floor", "tokens_per_s",
        "interrupted", "signal"}  # fmt: skip


def test_the_last_line_is_one_json_object_and_progress_goes_to_standard_error(torchane_command, small):
    done = torchane_command(*small)
    assert done.code == 0 and len(done.out.splitlines()) == 1
    assert set(done.json) == KEYS
    assert done.json["steps"] == 6 and done.json["valid_loss"] > 0 and done.json["tokens_per_s"] > 0
    assert done.json["floor"] is None and done.json["device"] == "twin" and done.json["preset"] == "tiny"
    assert "step 6/6" in done.err and "sample before training" in done.err and "sample after 6 steps" in done.err


@pytest.mark.long
def test_the_last_step_is_drawn_as_measured_and_what_is_computed_again_is_remembered(torchane_command, small, monkeypatch):
    monkeypatch.setattr(training, "train", training.train.func)  # on the twin
    done = torchane_command(*small, "--recompute", "all", "--timeline", "step.svg", "--trace", "step.json")
    assert done.code == 0 and "The last step is drawn in step.svg and step.json." in done.err
    events = json.loads(Path("step.json").read_text())["traceEvents"]
    graphs = [event["args"]["graph"] for event in events if event["ph"] == "X" and event["cat"] == "dispatch"]
    assert set(graphs) == {"forward", "backward"} and graphs == sorted(graphs, key=("forward", "backward").index)
    assert "on twin: measured, the last step" in Path("step.svg").read_text()
    assert json.loads(Path("run/run.json").read_text())["recompute"] == "all"


def test_what_is_computed_again_is_the_runs_own(torchane_command, small):
    torchane_command(*small)
    refused = torchane_command("train", "--resume", "run", "--recompute", "half")
    assert refused.code == 2 and "--recompute cannot be given with it" in refused.err


def test_without_json_progress_goes_to_standard_output(torchane_command, small):
    done = torchane_command(*(part for part in small if part != "--json"))
    assert done.code == 0 and done.err == ""
    assert "step 6/6" in done.out and "torchane generate run" in done.out


def test_it_says_once_which_device_auto_became(torchane_command, small):
    done = torchane_command(*small)
    assert done.err.count("--device auto: there is no Neural Engine") == 1


def test_stories_come_with_their_floor(torchane_command, monkeypatch):
    monkeypatch.setattr(training, "stories_dataset", few_stories(training.stories_dataset))
    done = torchane_command("train", "--steps", 2, "--batch-size", 2, "--seq-len", 64, "--json")
    assert done.code == 0 and 0 < done.json["floor"] < done.json["bits_per_byte"]
    assert done.json["run"] == "runs/tiny-1"
    assert f"floor {done.json['floor']:.3f}" in done.err


def few_stories(whole):
    return lambda *arguments, **options: whole(*arguments, **options, train_stories=200, valid_stories=10)


def test_the_run_folder_says_where_it_comes_from(torchane_command, small, text):
    torchane_command(*small)
    about = json.loads(Path("run/run.json").read_text())
    assert about["data"]["path"] == str(text) and about["settings"]["steps"] == 6 and about["seed"] == 0
    assert {"command", "torch", "torchane", "python", "platform", "commit"} <= set(about["provenance"][0])


def test_ctrl_c_saves_and_resuming_gives_what_an_unbroken_run_gives(torchane_command, small, small_elsewhere, monkeypatch):
    unbroken = torchane_command(*small).json
    step = Trainer.step

    def step_and_ctrl_c(self, times):
        report = step(self, times)
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return report

    monkeypatch.setattr(Trainer, "step", step_and_ctrl_c)
    stopped = torchane_command(*small_elsewhere, "--out", "other")
    assert stopped.code == 130 and stopped.json["interrupted"] and stopped.json["steps"] == 3
    assert "Go on with: torchane train --resume other" in stopped.err and "Stopping after this step" in stopped.err
    monkeypatch.setattr(Trainer, "step", step)
    resumed = torchane_command("train", "--resume", "other", "--json")
    assert resumed.code == 0
    same = KEYS - {"run", "tokens_per_s"}
    assert stopped.json["signal"] == signal.SIGINT
    assert {key: resumed.json[key] for key in same} == {key: unbroken[key] for key in same}
    for name in ("model.safetensors", "training.safetensors"):
        assert Path("run", name).read_bytes() == Path("other", name).read_bytes()
    assert len(json.loads(Path("other/run.json").read_text())["provenance"]) == 2


def test_more_steps_lengthen_a_finished_run(torchane_command, small):
    torchane_command(*small)
    done = torchane_command("train", "--resume", "run", "--steps", 8, "--json")
    assert done.code == 0 and done.json["steps"] == 8


def test_the_same_seed_gives_the_same_numbers(torchane_command, small_elsewhere):
    first = torchane_command(*small_elsewhere, "--out", "a").json
    again = torchane_command(*small_elsewhere, "--out", "b").json
    other = torchane_command(*small_elsewhere, "--out", "c", "--seed", 1).json
    assert first["valid_loss"] == again["valid_loss"] != other["valid_loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "huge"), "'huge' is not one of 'tiny', 'stories260k', 'stories15m', 'stories42m', 'stories110m'"),
        (("--device", "gpu"), "'gpu' is not one of 'auto', 'twin', 'ane'"),
        (("--steps", "0"), "0 is not a whole number from 1 to"),
        (("--lr", "0"), "0 is not a number above 0 to 1,000"),
        (("--stepz", "1"), "No such option"),
        (("--resume", "absent"), "Directory 'absent' does not exist"),
        (("--resume", ".", "--lr", "1", "--seed", "2"), "so --lr, --seed cannot be given with it"),
    ],
)
def test_misuse_ends_with_2_and_one_message(torchane_command, arguments, message):
    done = torchane_command("train", *arguments)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err
    assert not Path("runs").exists()


def test_an_out_that_holds_something_is_left_alone(torchane_command, small):
    torchane_command(*small)
    before = Path("run/run.json").read_bytes()
    done = torchane_command(*small)
    assert done.code == 2 and "run holds a run already" in done.err
    assert Path("run/run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "There is no data"),
        (lambda path: path.write_text(""), "data is empty"),
        (lambda path: path.write_bytes(bytes(range(256)) * 100), "data is a binary file"),
        (lambda path: path.write_text("x"), "too little to learn from"),
        (lambda path: path.mkdir(), "The folder data is empty"),
        (lambda path: path.write_text("Some words in a line.\n" * 30), "--batch-size or --seq-len smaller"),
    ],
    ids=["missing", "empty", "binary", "short", "empty folder", "less than a batch"],
)
def test_bad_data_ends_with_2_and_one_message_and_leaves_no_folder(torchane_command, make, message):
    make(Path("data"))
    done = torchane_command("train", "--data", "data", "--out", "run")
    assert done.code == 2 and "DataError: " in done.err and message in done.err and "Traceback" not in done.err
    assert not Path("run").exists()


def test_an_out_below_a_file_ends_with_1(torchane_command, small_elsewhere, text):
    done = torchane_command(*small_elsewhere, "--out", text / "run")
    assert done.code == 1 and "RunFolderError: " in done.err and "could not be written" in done.err


def test_an_out_that_cannot_be_written_is_found_before_the_data_is_read(torchane_command, text):
    done = torchane_command("train", "--data", "missing", "--out", text / "run")
    assert done.code == 1 and "RunFolderError: " in done.err


def test_text_that_changed_is_not_resumed(torchane_command, small, text):
    torchane_command(*small)
    text.write_text(text.read_text().replace("fox", "owl"))
    done = torchane_command("train", "--resume", "run", "--steps", 8)
    assert done.code == 2 and "no longer gives the text that run was trained on" in done.err


@pytest.mark.parametrize("name", ["run.json", "config.json", "tokenizer.json", "training.safetensors"])
def test_a_damaged_run_folder_names_the_file_and_stays_as_it_is(torchane_command, small, name):
    torchane_command(*small)
    Path("run", name).write_text("{}\n{")
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    done = torchane_command("train", "--resume", "run", "--steps", 8)
    assert done.code == 1 and f"run/{name}" in done.err and "Traceback" not in done.err
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


def test_steps_behind_the_checkpoint_are_refused(torchane_command, small):
    torchane_command(*small)
    done = torchane_command("train", "--resume", "run", "--steps", 3)
    assert done.code == 2 and "at step 6 already; --steps 3 is behind it" in done.err


def test_the_last_line_can_be_pasted_into_a_shell(torchane_command, small_elsewhere):
    done = torchane_command(*small_elsewhere, "--out", "my run; rm -rf x")
    assert done.code == 0 and "torchane generate 'my run; rm -rf x'" in done.err


def test_more_threads_than_cpus_are_brought_down_and_said(torchane_command, small, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    done = torchane_command(*small, "--threads", 1000)
    assert done.code == 0 and "--threads 1000: there are 2 CPUs here" in done.err


def test_the_first_step_says_no_time_left(torchane_command, small):
    first, *_ = [line for line in torchane_command(*small).err.splitlines() if line.startswith("step 1/6")]
    assert "left" not in first and "tokens/s" not in first


def test_two_processes_do_not_train_one_run(torchane_command, small):
    torchane_command(*small)
    with RunLock(Path("run")):
        done = torchane_command("train", "--resume", "run", "--steps", 8)
        other = torchane_command("train", "--data", "notes.txt", "--out", "run")
    assert done.code == 1 and f"run is in use by process {os.getpid()} on" in done.err
    assert other.code == 2 and "holds a run already" in other.err
    assert torchane_command("train", "--resume", "run", "--steps", 8).code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGXCPU, 152)])
def test_signals_save_and_end_with_their_own_codes(torchane_command, small, monkeypatch, number, code):
    step = Trainer.step

    def step_and_signal(self, times):
        report = step(self, times)
        if report.step == 3:
            os.kill(os.getpid(), number)
        return report

    monkeypatch.setattr(Trainer, "step", step_and_signal)
    assert torchane_command(*(part for part in small if part != "--json")).code == code
    assert Path("run/training.safetensors").exists()


def test_output_that_is_lost_ends_the_run_with_a_checkpoint(torchane_command, small, monkeypatch):
    said = PlainReporter.said

    def lose(self, text):
        if "step 1/6" in text:
            self.lost = LostOutput(OSError(28, "No space left on device"))
        said(self, text)

    monkeypatch.setattr(PlainReporter, "said", lose)
    done = torchane_command(*(part for part in small if part != "--json"))
    assert done.code == 1 and "No space left on device. The run was ended by it, with a checkpoint: it is at step 1." in done.err
    assert Path("run/training.safetensors").exists()


def test_tokens_of_others_are_trained_on_and_resumed(torchane_command):
    tokens = np.random.default_rng(0).integers(0, 512, 20_000)
    tokens.astype(np.uint16).tofile("tokens.bin")
    done = torchane_command("train", "--data", "tokens.bin", "--steps", 2, "--batch-size", 2, "--seq-len", 32, "--out", "run", "--json")
    assert done.code == 0 and done.json["bits_per_byte"] is None and done.json["valid_loss"] > 0
    assert not Path("run/tokenizer.json").exists() and "validation loss" in done.err
    again = torchane_command("train", "--resume", "run", "--steps", 3, "--json")
    assert again.code == 0 and again.json["steps"] == 3
    written = torchane_command("generate", "run")
    assert written.code == 1 and "run/tokenizer.json does not exist, and text needs one" in written.err


def test_a_tokenizer_that_is_given_is_used(torchane_command, small, small_elsewhere):
    torchane_command(*small)
    done = torchane_command(*small_elsewhere, "--out", "other", "--tokenizer", "run/tokenizer.json")
    assert done.code == 0 and Path("other/tokenizer.json").read_bytes() == Path("run/tokenizer.json").read_bytes()
    refused = torchane_command("train", "--resume", "run", "--tokenizer", "run/tokenizer.json")
    assert refused.code == 2 and "--tokenizer cannot be given with it" in refused.err


def test_a_run_that_is_killed_while_it_reads_leaves_no_hindrance(torchane_command, small):
    Path("run").mkdir()
    Path("run/.lock").write_text('{"pid": 1, "host": "x", "command": "torchane train"}')
    assert torchane_command(*small).code == 0


def test_a_folder_that_holds_far_more_than_was_trained_on_is_not_read(torchane_command, small, monkeypatch):
    torchane_command(*small)
    monkeypatch.setattr(training, "SPARE_BYTES", 0)
    Path("notes.txt").write_text(Path("notes.txt").read_text() * 3)
    monkeypatch.setattr(training, "corpus_dataset", lambda *_, **__: pytest.fail("it was read"))
    done = torchane_command("train", "--resume", "run", "--steps", 8)
    assert done.code == 2 and "and run was trained on" in done.err
