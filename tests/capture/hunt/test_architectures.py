"""Architectures of transformers beside eager float32: no gradient is further off than PyTorch's own bf16 autocast."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import NAMES, batch, build
from torch import nn

from torchane.errors import TorchaneWarning

pytestmark = pytest.mark.long


def step(run: Callable[..., Any], model: nn.Module) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(1)
    loss = run(**batch()).loss
    loss.backward()
    return loss.item(), {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Of all gradients as one vector."""
    off = sum((found[name] - grad).square().sum().item() for name, grad in wanted.items())
    return (off / sum(grad.square().sum().item() for grad in wanted.values())) ** 0.5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_gradients_are_nearer_than_autocasts(kind: str, name: str) -> None:
    torch._dynamo.reset()
    model = build(kind, name)
    loss, wanted = step(model, model)
    with torch.autocast("cpu", torch.bfloat16):
        autocast_loss, theirs = step(model, model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", TorchaneWarning)
        mine, found = step(torch.compile(model, backend="ane", options={"device": "twin"}), model)
    assert found.keys() == wanted.keys()
    assert 0 < distance(found, wanted) < distance(theirs, wanted), [str(one.message) for one in said]  # 0: no program ran
    assert abs(mine - loss) < max(3e-4 * loss, abs(autocast_loss - loss))
