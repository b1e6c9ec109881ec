"""`torchane lora`: what it prints and leaves, and one message with the right exit code for every mistake. PyTorch runs the model."""

import json
import os
import re
import signal
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from torchane.cli import tuning
from torchane.finetune.loop import Tuner
from torchane.train.forward import HostModel

pytestmark = [pytest.mark.usefixtures("own_handlers"), pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("base") / "llama", "llama", dtype=torch.bfloat16)


@pytest.fixture
def lora(torchane_command, base, tmp_path, monkeypatch):
    """lora("--iters", 3) -> Done, in an empty folder with data/; the model is `base` unless said."""
    monkeypatch.setattr(tuning, "tune", partial(tuning.tune, compile_model=lambda model, device, **options: HostModel(model, "twin")))
    (tmp_path / "data").mkdir()
    for name, count in (("train", 12), ("valid", 3), ("test", 3)):
        lines = [json.dumps({"prompt": f"{i} and {i}?", "completion": f"{2 * i}. " * (1 + i % 3)}) for i in range(count)]
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")

    def run(*arguments):
        begin = () if "--resume" in arguments else ("--model", base, "--data", "data", "--learning-rate", 1e-2)
        return torchane_command("lora", *begin, *arguments)

    return run


def test_it_learns_and_says_so_in_mlx_lms_lines(lora, base):
    done = lora("--train", "--test", "--iters", 30, "--steps-per-eval", 15, "--json")
    assert done.code == 0 and len(done.out.splitlines()) == 1
    assert "Iter 0: Val loss" in done.err and "Iter 30: Train loss" in done.err and "Learning Rate 1.000e-02, It/sec" in done.err
    assert "Trainable parameters: 14.677% (0.022M/0.152M)" in done.err and "lora of the last 3 of 3 blocks" in done.err and "Test loss" in done.err and "Saved adapter weights to adapters" in done.err
    assert re.search(r"Memory, estimated before anything is loaded: \d+\.\d MiB \(weights \d+ KiB, ", done.err) and "positions" not in done.err  # it has 512; 2,048 were not asked for
    assert f"torchane generate {base} --adapter-path adapters" in done.err and "torchane export adapters --to mlx,gguf-lora" in done.err
    rows = [json.loads(line) for line in Path("adapters/metrics.jsonl").read_text().splitlines()]
    valid = [row["valid_loss"] for row in rows if row["kind"] == "validation"]
    assert len(rows) == 33 and valid[2] < valid[0] - 0.2 and done.json["valid_loss"] == valid[2]
    assert done.json["test_loss"] < valid[0] - 0.2 and done.json["iters"] == 30 and done.json["adapter"] == "adapters"


@pytest.mark.parametrize("more", [(), ("--packing", "--max-seq-length", 64, "--batch-size", 2)], ids=["padded", "packed"])
def test_ctrl_c_saves_and_resuming_gives_what_an_unbroken_run_gives(lora, monkeypatch, more):
    options = ("--train", "--iters", 6, "--grad-accumulation-steps", 2, "--optimizer", "adamw", *more)
    assert lora(*options, "--adapter-path", "whole").code == 0
    step = Tuner.step

    def step_and_ctrl_c(self):
        taken = step(self)
        if self.state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return taken

    monkeypatch.setattr(Tuner, "step", step_and_ctrl_c)
    stopped = lora(*options, "--adapter-path", "broken")
    assert stopped.code == 130 and "Go on with: torchane lora --resume broken" in stopped.out
    monkeypatch.setattr(Tuner, "step", step)
    resumed = lora("--resume", "broken", "--test")
    assert resumed.code == 0 and "Resuming broken after iteration 3 of 6" in resumed.out and "Test loss" in resumed.out
    for name in ("adapter_model.safetensors", "state/training.safetensors"):
        assert Path("broken", name).read_bytes() == Path("whole", name).read_bytes(), name


def test_packing_says_what_it_saves(lora):
    done = lora("--train", "--iters", 1, "--packing", "--max-seq-length", 288, "--batch-size", 2, "--json")
    rows = re.search(r"batches of 2 rows of 288 tokens, (\d+) in an epoch, (.*) % of them padding \((.*) % without --packing\)", done.err)
    assert done.code == 0 and rows and float(rows[2]) != float(rows[3]), done.err
    assert json.loads(Path("adapters/training.json").read_text())["settings"]["packing"] is True


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor", "muon"])
def test_every_optimizers_state_comes_back(lora, optimizer, tmp_path):
    (tmp_path / "c.yaml").write_text(f"optimizer: {optimizer}\noptimizer_config: {{sgd: {{momentum: 0.9}}}}\nsave_every: 2\n")
    options = ("--train", "-c", "c.yaml")
    assert lora(*options, "--iters", 4, "--adapter-path", "whole").code == 0
    assert lora(*options, "--iters", 2, "--adapter-path", "broken").code == 0
    assert lora("--resume", "broken", "--iters", 4).code == 0
    assert Path("broken/adapter_model.safetensors").read_bytes() == Path("whole/adapter_model.safetensors").read_bytes()


def test_full_writes_a_model_in_the_bases_type_that_torchane_loads_again(lora, base, torchane_command):
    assert lora("--train", "--fine-tune-type", "full", "--num-layers", 1, "--iters", 3, "--adapter-path", "whole").code == 0
    tuned, own = load_file("whole/model.safetensors"), load_file(base / "model.safetensors")
    changed = {name for name in own if not torch.equal(tuned[name], own[name])}
    assert {value.dtype for value in tuned.values()} == {torch.bfloat16} and set(tuned) == set(own)
    assert changed and all(name.startswith("model.layers.2.") for name in changed)
    assert all((Path("whole") / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"))  # it is used without its base
    assert lora("--model", "whole", "--test", "--adapter-path", "").code == 2  # --model twice
    assert lora("--resume", "whole", "--iters", 4).code == 0


def test_a_test_alone_reads_the_adapter_or_none(lora):
    lora("--train", "--iters", 8)
    tuned, plain = (lora("--test", "--adapter-path", path, "--json").json for path in ("adapters", ""))
    assert tuned["test_loss"] < plain["test_loss"] and plain["adapter"] is None


def test_a_run_may_begin_with_another_adapter(lora):
    lora("--train", "--iters", 8)
    done = lora("--train", "--iters", 1, "--adapter-path", "second", "--resume-adapter-file", "adapters/adapter_model.safetensors")
    first = [json.loads(line) for line in Path("adapters/metrics.jsonl").read_text().splitlines()]
    second = [json.loads(line) for line in Path("second/metrics.jsonl").read_text().splitlines()]
    assert done.code == 0 and second[0]["valid_loss"] == [row for row in first if row["kind"] == "validation"][-1]["valid_loss"]


def test_a_base_in_few_bits_is_the_same_to_training_tests_and_merging(lora, base, torchane_command):
    options = ("--train", "--iters", 4, "--quantize", "4", "--save-every", 2)
    done = lora(*options, "--test", "--json")
    assert done.code == 0 and "18 linear layers of the base are kept in 4 bits" in done.err
    alone = lora("--test", "--json")
    assert alone.json["test_loss"] == done.json["test_loss"]  # the adapter says how its base was kept
    assert "trained on its base in 4 bits" in lora("--test", "--quantize", "8").err
    assert lora(*options[:2], 2, *options[3:], "--adapter-path", "parts").code == 0
    resumed = lora("--resume", "parts", "--iters", 4)
    assert resumed.code == 0 and Path("parts/adapter_model.safetensors").read_bytes() == Path("adapters/adapter_model.safetensors").read_bytes()
    refused = lora("--resume", "parts", "--quantize", "8", "--arithmetic", "fast")
    assert refused.code == 2 and "--quantize, --arithmetic cannot be given with it" in refused.err
    fused = torchane_command("fuse", "--adapter-path", "adapters", "--save-path", "fused")
    assert fused.code == 0 and "18 linear layers that the adapter was trained beside in 4 bits have those numbers here" in fused.err
    merged = torchane_command("lora", "--model", "fused", "--data", "data", "--test", "--adapter-path", "", "--json")
    assert abs(merged.json["test_loss"] - done.json["test_loss"]) < 2e-2  # merged weights are rounded to bf16
    assert abs(lora("--test", "--adapter-path", "", "--json").json["test_loss"] - done.json["test_loss"]) > 5e-2


def test_the_folder_says_where_it_comes_from(lora, base):
    lora("--train", "--iters", 1)
    about = json.loads(Path("adapters/training.json").read_text())
    assert about["base"]["path"] == str(base) and about["settings"]["iters"] == 1 and about["data"]["path"].endswith("data")
    assert {"torch", "torchane", "transformers", "peft", "command"} <= set(about["provenance"][0])
    assert json.loads(Path("adapters/adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


def test_trackers_get_the_numbers_under_mlx_lms_names(lora, monkeypatch):
    calls = []
    fake = types.SimpleNamespace(
        init=lambda **given: calls.append(("init", given)), log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append(("finish", {}))
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert lora("--train", "--iters", 2, "--report-to", "wandb", "--project-name", "foxes").code == 0
    assert calls[0][1]["project"] == "foxes" and calls[-1][0] == "finish"
    assert {"val_loss", "train_loss", "tokens_per_second"} <= {name for _, values in calls for name in values}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "Say what to do: --train, --test, or both"),
        (("--train", "--adapter-path", ""), 2, "--adapter-path is empty"),
        (("--train", "--batch-size", 64), 2, "There are 12 examples to train on, and a batch has 64"),
        (("--train", "--packing"), 2, "fill 2 rows of 512 tokens, and a batch has 4"),
        (("--train", "--report-to", "mlflow"), 2, "--report-to mlflow: known are wandb and swanlab"),
        (("--train", "--report-to", "swanlab"), 2, "pip install swanlab"),
        (("--train", "--resume-adapter-file", "no.safetensors"), 1, "There is no no.safetensors"),
        (("--test",), 1, "adapters holds no adapter"),
        (("--train", "-c", "no.yaml"), 2, "no.yaml: there is no such file"),
        (("--train", "--optimizer", "lion"), 2, "lion"),
        (("--train", "--num-layers", 0), 2, "num_layers is 0, and then nothing is trained"),
        (("--train", "--val-batches", 0), 2, "val_batches is 0"),
        (("--train", "--learning-rate", 0), 2, "--learning-rate"),
        (("--train", "--trust-remote-code"), 2, "--trust-remote-code is not supported: code that comes with a model is never run. Leave it out"),
        (("--train", "--clear-cache-threshold", "1GB"), 2, "--clear-cache-threshold is not supported: it empties Metal's cache"),
    ],
)
def test_a_call_that_cannot_be_carried_out_says_why(lora, arguments, code, said):
    done = lora(*arguments)
    assert done.code == code and said in done.err, done.err
    assert not Path("adapters").exists()


def test_a_zero_of_the_command_line_wins_over_the_file(lora):
    """Python holds it equal to False, which is a flag that was not given."""
    Path("c.yaml").write_text("seed: 7\nlearning_rate: 1e-3\n")
    assert lora("--train", "--iters", 1, "-c", "c.yaml", "--seed", 0).code == 0
    assert json.loads(Path("adapters/training.json").read_text())["settings"]["seed"] == 0


def test_nothing_is_overwritten(lora, base):
    lora("--train", "--iters", 1)
    again = lora("--train", "--iters", 1)
    assert again.code == 2 and "adapters holds training.json already, and nothing is overwritten. Continue it with --resume adapters" in again.err
    own = lora("--train", "--adapter-path", base)
    assert own.code == 2 and "and nothing is overwritten" in own.err


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda base: Path("data/train.jsonl").write_text('{"text": "a"}\n' * 12), 2, "no longer gives the examples that adapters was begun with"),
        (lambda base: Path("adapters/training.json").write_text("{}"), 1, "training.json was edited or damaged"),
        (lambda base: Path("adapters/state/training.safetensors").write_bytes(b"x" * 99), 1, "state/training.safetensors"),
        (lambda base: Path("adapters/training.json").unlink(), 1, "holds no run that could be resumed"),
    ],
)
def test_a_run_that_cannot_be_resumed_says_why(lora, base, change, code, said):
    lora("--train", "--iters", 2)
    change(base)
    done = lora("--resume", "adapters", "--iters", 3)
    assert done.code == code and said in done.err, done.err


def test_a_run_is_resumed_on_its_own_base_alone_and_as_it_was_begun(lora, tmp_path):
    lora("--train", "--iters", 2)
    done = lora("--resume", "adapters", "--model", tiny.folder(tmp_path / "other", "llama"))
    assert done.code == 1 and "is not the base that adapters was begun with" in done.err
    done = lora("--resume", "adapters", "--batch-size", 2)
    assert done.code == 2 and "so --batch-size cannot be given with it" in done.err
    done = lora("--resume", "adapters", "--seed", 0)
    assert done.code == 2 and "so --seed cannot be given with it" in done.err
    done = lora("--resume", "adapters")
    assert done.code == 0 and "adapters has made its 2 iterations, and nothing is left to train. It goes on with --iters of more than 2." in done.out
    assert "Compiling" not in done.out


@pytest.mark.parametrize(
    ("given", "folder"),
    [({"train": True}, "adapters"), ({"train": True, "adapter_path": "a"}, "a"), ({"resume": Path("b")}, "b"), ({"train": False}, None),
     ({"config": "train: true\nadapter_path: c\n"}, "c"), ({"train": False, "adapter_path": ""}, None)],
)  # fmt: skip
def test_what_watches_a_run_knows_its_folder(tmp_path, given, folder):
    if "config" in given:
        (tmp_path / "c.yaml").write_text(given["config"])
        given = {"config": tmp_path / "c.yaml"}
    options = {"resume": None, "config": None, "adapter_path": None, "train": False, **given}
    assert tuning.run_folder(options) == (None if folder is None else Path(folder))
