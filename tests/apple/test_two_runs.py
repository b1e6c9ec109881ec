"""Two `torchane train --device ane` at once, each a process of its own, through the bridge and the stand-in.

    runs/one ──► the same folder of compiled programs, the same daemon ◄── runs/two        both have the twin's losses
    runs/one ◄── --resume, --out of a third and a fourth                                   an error that names the first
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_training import losses, on_standin, run, write_tokens

STEPS = 4


@pytest.fixture
def tokens(tmp_path) -> Path:
    return write_tokens(tmp_path / "tokens", 512)


def training(tokens: Path, *more: str) -> list[str]:
    size = ["--preset", "stories260k", "--batch-size", "1", "--seq-len", "32"]
    return ["train", *size, "--steps", str(STEPS), "--eval-interval", str(STEPS), "--data", str(tokens), *more]


@contextmanager
def begun(*commands: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """All at once; none outlives the test."""
    environment = {**os.environ, "TORCHANE_SUPERVISED": "1"}
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def refused(command: list[str]) -> str:
    """What a process that ends with an error of ours says of it."""
    done = subprocess.run(command, env={**os.environ, "TORCHANE_SUPERVISED": "1"}, capture_output=True, text=True)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.mark.long
def test_two_runs_at_once_are_both_right_and_a_third_in_the_same_folder_is_refused(standin_library, tmp_path, tokens, evidence):
    machine, runs = tmp_path / "machine", [tmp_path / "one", tmp_path / "two"]

    def command(*arguments: str) -> list[str]:
        return on_standin(standin_library, machine, "engine", *arguments, "--device", "ane")

    with begun(*(command(*training(tokens, "--out", str(out))) for out in runs)) as both:
        first = both[0]
        while not (runs[0] / "run.json").is_file():
            assert first.poll() is None, first.communicate()
            time.sleep(0.1)
        assert f"is in use by process {first.pid}" in refused(command("train", "--resume", str(runs[0])))
        assert "holds a run already" in refused(command(*training(tokens, "--out", str(runs[0]))))
        assert first.poll() is None  # they were refused while it ran
        said = [process.communicate(timeout=3600) for process in both]
        assert [process.returncode for process in both] == [0, 0], said
    counts = [json.loads(errors.strip().splitlines()[-1]) for _, errors in said]
    assert not any(count["errors"] or "quarantined" in count for count in counts)
    on_twin = ["--device", "twin", "--arithmetic", "engine", "--ranges", "on", "--out", str(tmp_path / "twin")]
    run([sys.executable, "-m", "torchane", *training(tokens, *on_twin)])
    evidence("steps with the twin's bits in each of two runs at once", [len(losses(out)) for out in runs])
    assert losses(runs[0]) == losses(runs[1]) == losses(tmp_path / "twin") and len(losses(runs[0])) == STEPS
