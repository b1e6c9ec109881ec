"""`torchane train --device ane` through the bridge and the stand-in, against the same command on the twin.

In the engine's arithmetic both follow the same rules, and the losses are equal to the bit. In `exact` the twin adds products in
fp32 and the stand-in in float64, rounded once: which ops that concerns, and no other, is shown op by op.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from test_device import Loaded

from torchane.mil.build import Builder
from torchane.mil.name_constants import name_constants
from torchane.mil.save import emit
from torchane.models.build import build_model
from torchane.models.presets import preset
from torchane.runtime import devices
from torchane.runtime.ane.doctor.checks import SHAPE, _op_programs
from torchane.runtime.twin import TwinDevice
from torchane.train.engine import EngineModel

PROGRAM = Path(__file__).with_name("train_on_standin.py")
SIZE = ["--seq-len", "32", "--eval-interval", "100"]

#: Where the twin's `exact` is not the NumPy rule's bits, and why.
REASONS = dict.fromkeys(("conv", "matmul", "softmax"), "products are added in fp32, not in float64")


def small_losses(device, steps: int = 2) -> list[float]:
    """Of a Llama of one layer, 32 wide."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    config = replace(preset("tiny").config, vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=32)
    model = build_model(config.with_positions(32), seed=0)
    compiled = EngineModel(model, device, arithmetic="engine", ranges="off")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for step in range(steps):
        tokens = torch.randint(0, 64, (1, 33), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(compiled(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_steps_in_the_engines_arithmetic_have_the_twins_bits(machine, engine, monkeypatch):
    machine.arithmetic = "engine"
    monkeypatch.setitem(devices._open, "ane", engine)
    assert small_losses("ane") == small_losses("twin")
    assert engine.counts["verified"] and not engine.counts["quarantined"]


@pytest.mark.parametrize("name", _op_programs())
def test_exact_numbers_are_the_twins_but_for_a_reason(engine, name):
    """Through the bridge, 4,096 numbers: equal to the bit, or one step of fp16 off where the op has a reason."""
    b = Builder()
    x, y = b.input("a0_x", SHAPE), b.input("a1_y", SHAPE)
    program = b.program(b.mul(x=_op_programs()[name](b, x, y), y=1.0, name="z0_y"))
    loaded = Loaded(engine, program)
    rng = np.random.default_rng(3)
    loaded.inputs[0].array[...] = rng.uniform(-2, 2, SHAPE)
    loaded.inputs[1].array[...] = rng.uniform(0.25, 2, SHAPE)
    loaded.run()
    twin = TwinDevice()
    text, blobs = emit(name_constants(program))
    ready = twin.load(text, blobs)
    want = np.empty(ready.outputs[0].shape, np.float16)
    twin.run_arrays(ready, [buffer.array for buffer in loaded.inputs], [want])
    got = loaded.outputs[0].array
    if name not in REASONS:
        assert np.array_equal(got, want)
    else:
        assert 0.99 < (got == want).mean() < 1, REASONS[name]
        assert np.allclose(got, want, rtol=2.0**-9, atol=2.0**-12)


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
def on_twin(tmp_path_factory) -> Callable[[str], dict[int, float]]:
    """100 steps of `tiny` in an arithmetic, with the powers of two that an engine gets; computed once."""

    @cache
    def train(arithmetic: str) -> dict[int, float]:
        folder = tmp_path_factory.mktemp("twin") / "run"
        options = ["--device", "twin", "--arithmetic", arithmetic, "--ranges", "on", "--steps", "100", "--batch-size", "1", *SIZE, "--out", str(folder)]
        run([sys.executable, "-m", "torchane", "train", *options])
        return losses(folder)

    return train


def a_hundred_steps(library: Path, folder: Path, arithmetic: str, batch_size: int = 1) -> dict[int, float]:
    out = folder / "run"
    done = run(on_standin(library, folder / "machine", arithmetic, "train", "--device", "ane", "--steps", "100", "--batch-size", str(batch_size), *SIZE, "--out", str(out)))
    counts = json.loads(done.stderr.strip().splitlines()[-1])
    assert not counts["errors"] and "quarantined" not in counts
    return losses(out)


@pytest.mark.long
def test_a_hundred_steps_in_the_engines_arithmetic_have_the_twins_bits(standin_library, tmp_path, on_twin, evidence):
    found = a_hundred_steps(standin_library, tmp_path, "engine")
    evidence("steps whose loss has the twin's bits, of 100", sum(found[step] == loss for step, loss in on_twin("engine").items()))
    assert found == on_twin("engine") and len(found) == 100


def gaps(found: dict[int, float], want: dict[int, float]) -> list[float]:
    assert found.keys() == want.keys() and len(found) == 100
    return [abs(found[step] - loss) / loss for step, loss in sorted(want.items())]


@pytest.mark.long
def test_a_hundred_steps_in_exact_arithmetic_are_the_twins_within_one_percent(standin_library, tmp_path, on_twin, evidence):
    found = gaps(a_hundred_steps(standin_library, tmp_path, "exact"), on_twin("exact"))
    evidence("largest gap of a step's loss, exact", max(found))
    assert max(found) < 0.01


def write_tokens(folder: Path, below: int) -> Path:
    """Of nanoGPT's kind: there is no tokenizer, so that a run ends with its last step and writes no sample."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("train.bin", "val.bin"):
        rng.integers(0, below, 2000, dtype=np.uint16).tofile(folder / name)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("name", ["stories110m", "qwen3-0.6b"])
def test_a_large_model_takes_a_step(standin_library, tmp_path, name, evidence):
    size = ["--preset", name, "--steps", "1", "--batch-size", "1", "--seq-len", "32", "--eval-interval", "1", "--data", str(write_tokens(tmp_path / "tokens", 32000))]
    done = run(on_standin(standin_library, tmp_path / "machine", "exact", "train", "--device", "ane", *size, "--out", str(tmp_path / "ane")))
    counts = json.loads(done.stderr.strip().splitlines()[-1])
    assert not counts["errors"] and "quarantined" not in counts
    run([sys.executable, "-m", "torchane", "train", "--device", "twin", "--ranges", "on", *size, "--out", str(tmp_path / "twin")])
    (found,), (want,) = losses(tmp_path / "ane").values(), losses(tmp_path / "twin").values()
    evidence(f"{name}: dispatches, and gap of the loss", [counts["dispatches"], abs(found - want) / want])
    assert abs(found - want) / want < 0.01


@pytest.mark.long
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
