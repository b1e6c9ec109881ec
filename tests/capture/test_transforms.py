"""torch.func inside a compiled function: gradients, maps and derivatives of modules agree with eager."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture_helpers import distance
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.utils._pytree import tree_leaves

from torchane.capture import backend

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*runs? in PyTorch on the CPU:torchane.errors.TorchaneWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),  # torch's own, in forward mode
]

BAR = 0.02


class Net(nn.Module):
    """Equal layers, which share_layers looks for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


torch.manual_seed(0)
NET = Net().requires_grad_(False)
WEIGHTS = dict(NET.named_parameters())
STACKED = stack_module_state([Net().requires_grad_(False) for _ in range(3)])[0]
X = torch.randn(5, 8)


def loss(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return functional_call(NET, weights, (x,)).square().sum()


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "grad": (lambda w, x: grad(loss)(w, x), (WEIGHTS, X)),
    "gradients of every sample": (lambda w, x: vmap(grad(loss), (None, 0))(w, x), (WEIGHTS, X)),
    "an ensemble": (lambda w, x: vmap(lambda one: functional_call(NET, one, (x,)))(w), (STACKED, X)),
    "an ensemble's gradients": (lambda w, x: vmap(grad(loss), (0, None))(w, x), (STACKED, X)),
    "jacrev": (lambda x: jacrev(NET)(x), (X[0],)),
    "jacfwd": (lambda x: jacfwd(NET)(x), (X[0],)),
    "hessian": (lambda x: hessian(lambda y: NET(y).square().sum())(x), (X[0],)),
    "jvp": (lambda x: jvp(NET, (x,), (x.cos(),)), (X,)),
    "vjp": (lambda x: vjp(NET, x)[1](torch.ones(5, 2)), (X,)),
    "vmap of a module": (lambda x: vmap(lambda one: NET(one))(x), (X,)),
    "layers before and after": (lambda x: NET(torch.cat([jacrev(NET)(x), x[None]])), (X[0],)),
}


@pytest.mark.parametrize("name", CASES)
def test_transforms_agree_with_eager(name: str) -> None:
    function, inputs = CASES[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend.ane, options={"device": "twin"})
    expected, got = tree_leaves(function(*inputs)), tree_leaves(compiled(*inputs))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == theirs.shape
        assert distance(ours, theirs) < BAR


def test_one_text_for_values_that_lie_in_different_orders_is_one_program() -> None:
    """An ensemble's first product leaves its axes in another order than the next: the tanh after each is one text, whose ports lie
    differently at each dispatch."""
    function, inputs = CASES["an ensemble"]
    torch._dynamo.reset()
    torch.compile(function, backend=backend.ane, options={"device": "twin"})(*inputs)
    plan = backend.COMPILED[-1].plans["forward"]
    assert len({program.text for program in plan.programs}) == len(plan.programs) < len(plan.dispatches)
