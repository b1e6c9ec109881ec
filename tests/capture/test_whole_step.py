"""A step of a whole preset as a chip's plan has it, beside the graph that nobody planned, on the twin with that chip, and beside PyTorch in float32.

Each step is a process of its own, and gradients are compared from files, so that no two models are in memory at once.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

#: Relative norm of the difference of all gradients together: roundings to fp16 that fall otherwise, in either of the two.
BAR = 2e-3
#: Of each tensor's: those of what makes queries and keys apart. By preset: each of its layers adds roundings, and those of 28 are further apart
#: than those of 12.
TENSORS = {"stories110m": (2e-3, 2e-3), "qwen3-0.6b": (2.5e-3, 3.5e-3)}
MAKE_SCORES = ("q_proj.weight", "k_proj.weight", "q_norm.weight", "k_norm.weight")
#: Of all gradients together, beside float32: weights and activations that fp16 rounds, through all layers.
WHOLE = 1e-2
#: Tokens of a step: few, and enough that the loss is computed in slices.
TOKENS = {"stories110m": 256, "qwen3-0.6b": 64}


def step(out: Path, preset: str, chip: str | None, planned: bool = False) -> dict[str, Any]:
    asked = {"preset": preset, "seq_len": TOKENS[preset], "chip": chip, "planned": planned}
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("whole_step.py")), str(out), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stdout.splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def distances(ours: Path, theirs: Path) -> tuple[dict[str, float], float]:
    """Of each tensor, and of all together."""
    one, other = (torch.load(path, mmap=True) for path in (ours, theirs))
    assert one.keys() == other.keys()
    found, apart, size = {}, 0.0, 0.0
    for name, wanted in other.items():
        difference, norm = (one[name] - wanted).double().norm().item(), wanted.double().norm().item()
        found[name] = difference / norm
        apart, size = apart + difference**2, size + norm**2
    return found, (apart / size) ** 0.5


@pytest.fixture(scope="module", params=sorted(TOKENS))
def reference(request, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A preset, and its gradients in float32."""
    path = tmp_path_factory.mktemp("float32") / "gradients"
    step(path, request.param, None)
    yield request.param, path
    path.unlink()


@pytest.mark.long
@pytest.mark.parametrize("chip", ["m1", "m4", "m5"])
def test_a_planned_step_has_the_gradients_of_the_graph_that_nobody_planned(reference, chip, tmp_path):
    preset, exact = reference
    planned, plain = tmp_path / "planned", tmp_path / "plain"
    ours, theirs = step(planned, preset, chip, True), step(plain, preset, chip)
    assert ours["dispatches"] != theirs["dispatches"] and not ours["has_all_scores"]
    apart, whole = distances(planned, plain)
    worst = sorted(apart.items(), key=lambda one: -one[1])[:8]
    beside = [distances(path, exact)[1] for path in (planned, plain)]
    print(f"{preset} {chip}: beside the unplanned {whole:.2e}, worst {', '.join(f'{name} {value:.2e}' for name, value in worst)}; beside float32 {beside[0]:.2e} and {beside[1]:.2e}")
    planned.unlink()
    plain.unlink()
    assert all(value < TENSORS[preset][name.endswith(MAKE_SCORES)] for name, value in apart.items())
    assert whole < BAR and max(beside) < WHOLE
