"""The supervisor of a training run: what restarts it, what does not, and what a signal does."""

import os
import signal
import subprocess
import sys
import time

import pytest

from torchane.cli import supervise
from torchane.errors import MissingDeviceError
from torchane.runtime.ane.watchdog import EXIT_CODE

#: Stands for torchane: notes its arguments, makes a run folder, ends as told, one code per start.
CHILD = """
import json, os, sys, time
from pathlib import Path
log, codes = Path(sys.argv[1]), [int(code) for code in sys.argv[2].split(",")]
arguments = sys.argv[3:]
starts = log.read_text().splitlines() if log.exists() else []
log.write_text("\\n".join([*starts, json.dumps(arguments)]))
assert os.environ["TORCHANE_SUPERVISED"] == "1"
run = Path(arguments[arguments.index("--out" if "--out" in arguments else "--resume") + 1])
run.mkdir(parents=True, exist_ok=True)
(run / "run.json").write_text("{}")
sys.exit(codes[min(len(starts), len(codes) - 1)])
"""
OPTIONS = {"device": "ane", "steps": 5, "preset": None, "resume": None, "out": None, "audit": False, "as_json": True, "threads": 2}


@pytest.fixture
def starts(tmp_path, monkeypatch):
    """Runs the supervisor with a child that ends with these codes in turn; its code and the arguments of each start."""

    def go(*codes, options=OPTIONS):
        log = tmp_path / "log"
        monkeypatch.setattr(supervise, "PROGRAM", [sys.executable, "-c", CHILD, str(log), ",".join(map(str, codes))])
        return supervise.supervise(options, tmp_path / "run"), [eval(line) for line in log.read_text().splitlines()]

    return go


def test_a_run_that_ends_is_not_started_again(starts):
    code, made = starts(0)
    assert code == 0 and len(made) == 1
    assert made[0][:5] == ["train", "--device", "ane", "--steps", "5"] and "--json" in made[0] and "--audit" not in made[0]


def test_a_number_of_zero_is_passed_on(starts):
    _, made = starts(0, options={**OPTIONS, "seed": 0, "warmup_steps": 0})
    assert "--seed 0 --warmup-steps 0" in " ".join(made[0])


@pytest.mark.parametrize("code", [1, 2, 130])
def test_an_error_is_the_runs_own(starts, code):
    assert starts(code)[0] == code


def test_a_hang_of_fine_tuning_resumes_it_with_the_options_that_resume_takes(tmp_path, monkeypatch):
    child = CHILD.replace("--out", "--adapter-path").replace("run.json", "training.json")
    log, run = tmp_path / "log", tmp_path / "adapters"
    monkeypatch.setattr(supervise, "PROGRAM", [sys.executable, "-c", child, str(log), f"{EXIT_CODE},0"])
    options = {"device": "ane", "model": "m", "train": True, "data": "d", "iters": 5, "adapter_path": None, "resume": None, "test": True, "as_json": False}
    assert supervise.supervise(options, run, "lora") == 0
    first, second = [eval(line) for line in log.read_text().splitlines()]
    assert first == ["lora", "--device", "ane", "--model", "m", "--train", "--data", "d", "--iters", "5", "--adapter-path", str(run), "--test"]
    assert second == ["lora", "--device", "ane", "--model", "m", "--data", "d", "--test", "--resume", str(run)]


def test_a_hang_resumes_the_run(starts, tmp_path, capsys):
    code, made = starts(EXIT_CODE, EXIT_CODE, 0)
    assert code == 0 and len(made) == 3
    assert made[1] == made[2] == ["train", "--device", "ane", "--threads", "2", "--json", "--resume", str(tmp_path / "run")]
    assert capsys.readouterr().err.count("goes on from the last checkpoint") == 2


def test_a_run_that_always_hangs_is_given_up(starts, monkeypatch, capsys):
    monkeypatch.setattr(supervise, "MOST_RESTARTS", 2)
    code, made = starts(EXIT_CODE)
    assert code == 1 and len(made) == 3
    assert "--device twin" in capsys.readouterr().err


def test_a_crash_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(supervise, "PROGRAM", [sys.executable, "-c", "import os; os.abort()"])
    assert supervise.supervise(OPTIONS, tmp_path / "run") == 128 + signal.SIGABRT
    assert "SIGABRT" in capsys.readouterr().err


def test_a_signal_reaches_the_child_once(tmp_path):
    """The child counts; the supervisor hands its exit code on."""
    child = "import signal, sys, time\nseen = []\nsignal.signal(signal.SIGINT, lambda *_: seen.append(1))\nprint('ready', flush=True)\ntime.sleep(1.5)\nsys.exit(40 + len(seen))"
    parent = f"import sys\nfrom pathlib import Path\nfrom torchane.cli import supervise\nsupervise.PROGRAM = [sys.executable, '-c', {child!r}]\nsys.exit(supervise.supervise({OPTIONS!r}, Path({str(tmp_path / 'run')!r})))"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(30) == 41
    process.stdout.close()


@pytest.mark.skipif(sys.platform == "darwin", reason="on a Mac there is an engine")
def test_without_an_engine_nothing_is_started(monkeypatch, tmp_path):
    from torchane.cli.train import command

    monkeypatch.setattr(supervise, "supervise", lambda *_: pytest.fail("started"))
    with pytest.raises(MissingDeviceError, match="There is no Neural Engine here"):
        command.main(["--device", "ane"], standalone_mode=False)


def test_two_supervisors_name_two_runs_and_leave_no_empty_one(monkeypatch, tmp_path):
    """Each name is taken before a child starts that writes into it."""
    from torchane.cli.train import command
    from torchane.runtime.ane import framework

    runs = []

    def start_another(options, run):
        runs.append(run)
        if len(runs) == 1:
            command.main(["--device", "ane"], standalone_mode=False)
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(framework, "find", lambda: None)
    monkeypatch.setattr(supervise, "supervise", start_another)
    command.main(["--device", "ane"], standalone_mode=False)
    assert [run.name for run in runs] == ["tiny-1", "tiny-2"]
    assert not list((tmp_path / "runs").iterdir())
