"""Networks for images, whole and at 224 x 224: how much of a training step is in programs, and how far its gradients are off."""

import copy
import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from capture_helpers import gradients
from torch import nn
from vision_models import NETWORKS

from torchane.capture import backend

pytestmark = pytest.mark.long

#: Of all multiply-adds, forward and backward.
LEAST_IN_PROGRAMS = 0.95
#: Beside autocast to bf16: the same number of rounded values, of three digits more.
MOST_OF_AUTOCAST = 1.2


def step(model: nn.Module, call: nn.Module, x: torch.Tensor, context: Any = None) -> torch.Tensor:
    """The gradient of every parameter, in one vector; the loss weighs the logits at random."""
    with context or nullcontext():
        logits = call(x)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits.float() * weights).mean().backward()
    return torch.cat([gradient.flatten() for gradient in gradients(model).values()]).double()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_is_in_programs_and_its_gradients_are_as_good_as_autocasts(name: str, evidence) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = NETWORKS[name]().train()
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    whole, halved = copy.deepcopy(model), copy.deepcopy(model)
    right = step(whole, whole, x)
    autocast = (step(halved, halved, x, torch.autocast("cpu", torch.bfloat16)) - right).norm() / right.norm()
    known = len(backend.COMPILED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*on the CPU")
        found = step(model, torch.compile(model, backend=backend.ane, dynamic=False, options={"device": "twin"}), x)
    error = (found - right).norm() / right.norm()
    rows = [row for compiled in backend.COMPILED[known:] for row in compiled.rows]
    share = sum(row.macs for row in rows if row.place == "program") / sum(row.macs for row in rows)
    evidence("share of multiply-adds in programs", share)
    evidence("relative error of the gradient", error.item(), unit="relative")
    evidence("the same under autocast to bf16", autocast.item(), unit="relative")
    print(f"{name}: {share:.1%} in programs, error {error:.4f}, autocast {autocast:.4f}")
    assert share >= LEAST_IN_PROGRAMS, {(row.op, row.why) for row in rows if row.macs and row.place == "host"}
    assert error <= MOST_OF_AUTOCAST * autocast
