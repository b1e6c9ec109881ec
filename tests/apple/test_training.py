"""`torchane train --device ane` through the bridge and the stand-in, against the same command on the twin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("train_on_standin.py")
SIZE = ["--batch-size", "1", "--seq-len", "32", "--eval-interval", "100"]

pytestmark = pytest.mark.long


def losses(run: Path) -> dict[int, float]:
    """Training losses by step."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "step"}


def on_standin(library: Path, folder: Path, arithmetic: str, *arguments: str, hang_at: int = 0) -> list[str]:
    folder.mkdir(exist_ok=True)
    return [sys.executable, str(PROGRAM), str(library), str(folder), arithmetic, str(hang_at), *arguments]


def run(command: list[str], supervised: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TORCHANE_SUPERVISED": "1"} if supervised else dict(os.environ)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def on_twin(tmp_path_factory) -> dict[int, float]:
    """100 steps of `tiny` in exact arithmetic, with the powers of two that an engine gets."""
    folder = tmp_path_factory.mktemp("twin") / "run"
    run([sys.executable, "-m", "torchane", "train", "--device", "twin", "--ranges", "on", "--steps", "100", *SIZE, "--out", str(folder)])
    return losses(folder)


@pytest.mark.parametrize("arithmetic", ["exact", "noisy"])
def test_a_hundred_steps_are_the_twins_within_one_percent(standin_library, tmp_path, on_twin, arithmetic, evidence):
    """Not the twin's bits: it adds products in fp32, the stand-in in float64, and rounds each result once."""
    folder = tmp_path / "run"
    done = run(on_standin(standin_library, tmp_path / "machine", arithmetic, "train", "--device", "ane", "--steps", "100", *SIZE, "--out", str(folder)))
    counts = json.loads(done.stderr.strip().splitlines()[-1])
    assert not counts["errors"] and "quarantined" not in counts
    found = losses(folder)
    assert found.keys() == on_twin.keys() and len(found) == 100
    gap = max(abs(found[step] - loss) / loss for step, loss in on_twin.items())
    evidence(f"largest gap of a step's loss, {arithmetic}", gap)
    assert gap < 0.01


def test_a_run_whose_engine_hangs_ends_where_it_would_have(standin_library, tmp_path):
    """Under the supervisor, hung once in the middle; a checkpoint at every step."""
    found = {}
    for name, hang_at in (("clean", 0), ("hung", 140)):
        folder = tmp_path / name
        program = on_standin(standin_library, folder, "exact", hang_at=hang_at)
        options = {"device": "ane", "steps": 8, "batch_size": 1, "seq_len": 32, "checkpoint_interval": 1}
        script = (
            "import sys\nfrom pathlib import Path\nfrom torchane.cli import supervise\n"
            f"supervise.PROGRAM = {program!r}\nsys.exit(supervise.supervise({options!r}, Path({str(folder / 'run')!r})))"
        )
        done = run([sys.executable, "-c", script], supervised=False)
        assert ("The engine hung" in done.stderr) == bool(hang_at), done.stderr
        found[name] = losses(folder / "run")
    assert found["hung"] == found["clean"] and len(found["clean"]) == 8
