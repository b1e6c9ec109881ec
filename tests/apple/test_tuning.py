"""`torchane lora --device ane` through the bridge and the stand-in: the losses and the adapter of the twin in the engine's arithmetic, to the bit; and
a run whose engine hangs can be resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from test_training import losses, on_standin

from torchane.runtime.ane.watchdog import EXIT_CODE

pytestmark = pytest.mark.long
SIZE = ["--iters", "4", "--batch-size", "1", "--num-layers", "-1", "--learning-rate", "1e-2", "--save-every", "1", "--max-seq-length", "33", "--threads", "1"]
ADAPTER, STATE = "adapter_model.safetensors", "state/training.safetensors"


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """The command that begins a run, but for where it writes."""
    path = tmp_path_factory.mktemp("begin")
    tiny.folder(path / "base", "llama")
    (path / "data").mkdir()
    (path / "data" / "train.jsonl").write_text("".join(json.dumps({"text": f"{i} foxes, {i * i} hens. "}) + "\n" for i in range(8)))
    return ["lora", "--model", str(path / "base"), "--train", "--data", str(path / "data"), *SIZE]


def call(command: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env={**os.environ, "TORCHANE_SUPERVISED": "1"}, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.parametrize("more", [(), ("--quantize", "4"), ("--fine-tune-type", "dora"), ("--packing", "--max-seq-length", "64")], ids=["lora", "quantized", "dora", "packed"])
def test_losses_and_adapter_have_the_twins_bits(standin_library, tmp_path, begin, more):
    given = [*begin, *more] if "--max-seq-length" not in more else [*begin[: begin.index("--max-seq-length")], *more]
    done = call(on_standin(standin_library, tmp_path / "machine", "engine", *given, "--device", "ane", "--adapter-path", str(tmp_path / "ane")))
    counts = json.loads(done.stderr.strip().splitlines()[-1])
    assert counts["dispatches"] and counts["verified"] and not counts["errors"] and "quarantined" not in counts
    call([sys.executable, "-m", "torchane", *given, "--device", "twin", "--arithmetic", "engine", "--adapter-path", str(tmp_path / "twin")])
    assert losses(tmp_path / "ane") == losses(tmp_path / "twin") and len(losses(tmp_path / "ane")) == 4
    assert (tmp_path / "ane" / ADAPTER).read_bytes() == (tmp_path / "twin" / ADAPTER).read_bytes()


def test_a_run_whose_engine_hangs_leaves_a_checkpoint_and_a_sentence_and_is_resumed(standin_library, tmp_path, begin):
    clean, folder = tmp_path / "clean", tmp_path / "run"
    call(on_standin(standin_library, tmp_path / "other", "engine", *begin, "--device", "ane", "--adapter-path", str(clean)))
    machine = tmp_path / "machine"
    done = call(on_standin(standin_library, machine, "engine", *begin, "--device", "ane", "--adapter-path", str(folder), hang_at=35), EXIT_CODE)
    assert "has not answered" in done.stderr, done.stderr
    reached = max(losses(folder))
    assert 0 < reached < 4 and (folder / STATE).exists()
    done = call(on_standin(standin_library, machine, "engine", "lora", "--resume", str(folder), "--device", "ane", hang_at=35))
    assert f"Resuming {folder} after iteration {reached} of 4" in done.stdout
    assert losses(folder) == losses(clean)
    for name in (ADAPTER, STATE):
        assert (Path(folder) / name).read_bytes() == (Path(clean) / name).read_bytes(), name
