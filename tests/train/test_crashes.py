"""A process dies, or the disk fills, at every call that a run makes of its files; resumed, it ends with the same bits.

crashing.py trains and dies. A write can also end after half of its bytes; a disk that is full stays so. Resumed runs are killed
again, up to three times each.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crashing import ENDED, FULL, GONE

from torchane.train.run_folder import RunFolder, load_run_model

FINAL = ("model.safetensors", "training.safetensors", "config.json", "tokenizer.json")


@pytest.fixture(scope="module")
def train():
    """train(folder, at, what) -> exit code of a process that begins the run or resumes it."""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(Path(__file__).with_name("crashing.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=here, text=True) as process:

        def call(folder: Path, at: int | None = None, what: str = "kill") -> int:
            process.stdin.write(json.dumps([str(folder), at, what]) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield call
        process.stdin.close()


def ended_as(folder: Path, whole: Path) -> None:
    for name in FINAL:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    rows = [[row | {"time_s": 0} for row in RunFolder(path).read_metrics()] for path in (folder, whole)]
    assert rows[0] == rows[1]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """A run that nothing stopped, and how many calls it made."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert train(path) == ENDED
    return path, int(Path(f"{path}.count").read_text())


def survive(train, tmp_path: Path, whole: Path, kills: list[tuple[int, str]]) -> int:
    """Trains, killed at each of these calls in turn, then resumes to the end. Gives how many kills there were."""
    folder = tmp_path / "run"
    killed = 0
    for at, what in kills:
        code = train(folder, at, what)
        assert code in (ENDED, FULL, GONE), code
        killed += code == GONE
        if not (folder / "run.json").exists():  # nothing had begun: the command would refuse the folder, and is called again
            shutil.rmtree(folder, ignore_errors=True)
        elif (folder / "training.safetensors").exists():
            load_run_model(folder)  # whatever came, what was saved can be used
    assert train(folder) == ENDED
    ended_as(folder, whole)
    shutil.rmtree(folder)
    return killed


def spread(count: int, samples: int) -> list[int]:
    return sorted({1 + k * (count - 1) // (samples - 1) for k in range(samples)})


@pytest.mark.parametrize("what", ["kill", "half", "full"])
def test_a_run_that_dies_at_some_of_its_calls_ends_with_the_same_bits(train, tmp_path, whole, what):
    path, count = whole
    for at in spread(count, 5):
        survive(train, tmp_path, path, [(at, what)])


def test_the_last_checkpoint_is_whole_wherever_it_breaks_off(train, tmp_path, whole):
    """From the last step's line of metrics to the end of the run."""
    path, count = whole
    for at in range(count - 13, count + 1):
        survive(train, tmp_path, path, [(at, "kill")])


@pytest.mark.long
@pytest.mark.parametrize("what", ["kill", "half", "full"])
def test_a_run_that_dies_at_any_call_ends_with_the_same_bits(train, tmp_path, whole, what):
    path, count = whole
    for at in range(1, count + 1):
        survive(train, tmp_path, path, [(at, what)])


@pytest.mark.long
def test_runs_that_die_again_and_again_end_with_the_same_bits(train, tmp_path, whole):
    path, count = whole
    killed = sum(
        survive(train, tmp_path, path, [(first, "kill"), (second, "half"), (third, "kill")])
        for first in spread(count, 9)
        for second, third in ((3, 7), (9, 20), (14, 2), (21, 21), (26, 12))
    )
    assert killed >= 100
