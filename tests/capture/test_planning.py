"""Plans whose values cross between host and surfaces in unusual places."""

import copy

import pytest
import torch
from capture_helpers import compile_for_twin, distance, gradients
from torch import nn

from torchane.capture import backend, planning
from torchane.plan import Unstage


@pytest.mark.filterwarnings("ignore:.*runs? in PyTorch on the CPU:torchane.errors.TorchaneWarning")
def test_what_the_forward_keeps_in_surfaces_is_there_for_host_work_of_the_backward(monkeypatch) -> None:
    """The norm's backward reads the norm's input, which a program of the forward computed and kept."""
    lacking = torch.ops.aten.native_layer_norm_backward.default
    why_not = planning.why_not
    monkeypatch.setattr(planning, "why_not", lambda node, chip: "taken out" if node.target is lacking else why_not(node, chip))
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 16))
    eager, x = copy.deepcopy(model), torch.randn(8, 16)
    compile_for_twin(model)(x).square().mean().backward()
    eager(x).square().mean().backward()
    plan = backend.COMPILED[-1].plans["backward"]
    unstaged = {copied.value for step in plan.steps if isinstance(step, Unstage) for copied in step.copies}
    assert unstaged & plan.surfaces_in.keys()
    for (name, ours), theirs in zip(gradients(model).items(), gradients(eager).values(), strict=True):
        assert distance(ours, theirs) < 0.02, name
