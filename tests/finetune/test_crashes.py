"""A fine-tuning process dies, or the disk fills, at every call that it makes of its files; resumed, it ends with the same bits.

dying_tuner.py tunes and dies, between two updates as well, with dropout. The long tier kills it at random moments, on the twin as well, and the command itself.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
from crashing import CALLS, ENDED, FULL, GONE
from dying_tuner import iterations

from torchane.train.run_folder import RunFolder

SETTINGS = {
    "iters": 3, "batch_size": 2, "steps_per_report": 2, "steps_per_eval": 2, "save_every": 1, "learning_rate": 1e-2,
    "grad_accumulation_steps": 2, "num_layers": 2, "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.1},
}  # fmt: skip
DORA = {"fine_tune_type": "dora", "lora_parameters": {"rank": 4, "scale": 2.0}}
WHOLE, PACKING = {"fine_tune_type": "full", "num_layers": 1}, {"packing": True, "max_seq_length": 64}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A base, and a folder with data and settings."""
    path = tmp_path_factory.mktemp("places")
    tiny.folder(path / "base", "llama")
    write_data(path / "data", SETTINGS)
    return path / "base", path / "data"


def write_data(path: Path, settings) -> None:
    path.mkdir()
    (path / "settings.yaml").write_text(json.dumps(settings))
    for name, count in (("train", 9), ("valid", 3)):
        lines = [json.dumps({"text": f"{i} foxes and {i * i} hens. " * (1 + i % 4)}) for i in range(count)]
        (path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def tune(places):
    """tune(folder, at, what) -> exit code of a process that begins the run or resumes it."""
    with tuning(*places) as call:
        yield call


@contextmanager
def tuning(base: Path, data: Path, *arguments: str):
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("dying_tuner.py")), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=here, text=True) as process:

        def call(folder: Path, at: int | None = None, what: str = "kill") -> int:
            process.stdin.write(json.dumps([str(folder), str(base), str(data), at, what]) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield call
        process.stdin.close()


@pytest.fixture(scope="module")
def whole(tune, tmp_path_factory):
    """A run that nothing stopped, and its calls."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert tune(path) == ENDED
    return path, Path(f"{path}.calls").read_text().split()


def ended_as(folder: Path, whole: Path, saves: int = SETTINGS["iters"]) -> None:
    names = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    assert len(names) == 2 + saves  # the adapter, the state, and a copy for each save
    for name in names:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    rows = [[row | {"time_s": 0} for row in RunFolder(path).read_metrics()] for path in (folder, whole)]
    assert rows[0] == rows[1]
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == sorted(path.relative_to(whole) for path in whole.rglob("*"))


def survive(tune, tmp_path: Path, whole: Path, kills: list[tuple[int, str]]) -> int:
    """Tunes, killed at each of these calls in turn, then resumes to the end. Gives how many kills there were."""
    folder, killed = tmp_path / "run", 0
    for at, what in kills:
        code = tune(folder, at, what)
        assert code in (ENDED, FULL, GONE), code
        killed += code == GONE
        if not (folder / "training.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
    assert tune(folder) == ENDED
    ended_as(folder, whole)
    shutil.rmtree(folder)
    return killed


def test_a_run_that_is_killed_ends_with_the_same_bits(tune, tmp_path, whole):
    path, calls = whole
    count = len(calls)
    assert count > 60
    for at in (count // 2, count - 4):
        survive(tune, tmp_path, path, [(at, "kill")])


#: The calls at which each way to die is another one than being killed there.
OTHERWISE = {"kill": CALLS, "half": ("write",), "full": ("write", "fsync")}


@pytest.mark.long
@pytest.mark.timeout(5000)
@pytest.mark.parametrize("what", OTHERWISE)
def test_a_run_that_dies_at_any_call_ends_with_the_same_bits(tune, tmp_path, whole, what):
    path, calls = whole
    for at, name in enumerate(calls, 1):
        if name in OTHERWISE[what]:
            survive(tune, tmp_path, path, [(at, what)])


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("changes", [{}, DORA, WHOLE, PACKING], ids=["lora", "dora", "full", "packing"])
def test_thirty_kills_at_random_seconds_end_with_the_same_bits(places, tmp_path, changes):
    """A checkpoint after each iteration, so that many of the kills meet one that is being written."""
    data, whole, folder = tmp_path / "data", tmp_path / "whole", tmp_path / "run"
    write_data(data, {**SETTINGS, **changes, "iters": 30})
    rng, kills, met, longest = random.Random(0), 0, set(), 0.0
    with tuning(places[0], data) as tune:
        for _ in range(2):  # the first one reads modules of its own
            shutil.rmtree(whole, ignore_errors=True)
            begin = time.monotonic()
            assert tune(whole) == ENDED
            longest = time.monotonic() - begin
        while kills < 30:
            code = tune(folder, rng.random() * longest, "after")
            if code == ENDED:  # it ended first: begin again
                ended_as(folder, whole, copies(changes))
                shutil.rmtree(folder)
            else:
                assert code == -signal.SIGKILL
                kills += 1
                met.add(iterations(folder))
            if not (folder / "training.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
        assert tune(folder) == ENDED
    ended_as(folder, whole, copies(changes))
    assert len(met) > 5  # kills met the run at different iterations


def copies(changes, saves: int = 30) -> int:
    return 0 if changes.get("fine_tune_type") == "full" else saves


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("changes", [{}, DORA, WHOLE, PACKING, {"quantize": 4}], ids=["lora", "dora", "full", "packing", "quantized"])
def test_thirty_kills_at_random_moments_leave_the_bits_of_a_run_that_nothing_stopped(tmp_path, changes):
    """On the twin, whose loss scale and programs must come back, too. A base of one block, which each resumed run compiles anew."""
    data, whole, folder = tmp_path / "data", tmp_path / "whole", tmp_path / "run"
    base = tiny.folder(tmp_path / "base", "llama", num_hidden_layers=1)
    write_data(data, {**SETTINGS, "max_seq_length": 33, **changes, "iters": 400, "save_every": 3})
    (data / "valid.jsonl").unlink()  # one length and no validation: one compilation
    rng, kills, met = random.Random(0), 0, set()
    with tuning(base, data, "twin") as tune:
        assert tune(whole) == ENDED
        rows = [row["time_s"] for row in RunFolder(whole).read_metrics() if row["kind"] == "step"]
        while kills < 30:
            code = tune(folder, rng.random() * 100 * sorted(rows)[len(rows) // 2], "step")
            kills += code == -signal.SIGKILL
            assert code in (ENDED, -signal.SIGKILL)
            met.add(iterations(folder))
            if code == ENDED:  # it ended first: begin again
                ended_as(folder, whole, copies(changes, 400 // 3))
                shutil.rmtree(folder)
        assert tune(folder) == ENDED
    ended_as(folder, whole, copies(changes, 400 // 3))
    assert len(met) > 10  # they met the run at different iterations


@pytest.mark.long
def test_kills_of_the_command_leave_the_adapter_of_a_run_that_nothing_stopped(places, tmp_path):
    """On the twin, in a process of its own each time."""
    data = tmp_path / "data"
    write_data(data, {**SETTINGS, "max_seq_length": 33, "iters": 100, "save_every": 3, "steps_per_eval": 50})
    begin = ["--model", str(places[0]), "--train", "--data", str(data), "-c", str(data / "settings.yaml")]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TORCHANE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", "-m", "torchane", "lora", "--device", "twin"]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    subprocess.run([*command, *begin, "--adapter-path", str(whole)], env=here, check=True, capture_output=True)
    for number in range(3):
        arguments = ["--resume", str(folder)] if number else [*begin, "--adapter-path", str(folder)]
        process = subprocess.Popen([*command, *arguments], env=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and iterations(folder) < 25 * (number + 1):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, "--resume", str(folder)], env=here, check=True, capture_output=True)
    for name in ("adapter_model.safetensors", "state/training.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
