"""Which selections go to the host, and which stay: the policy alone, on traced graphs. `product(x)` is a matrix product's result."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from torchane import chips
from torchane.capture.policies.facts import Facts
from torchane.capture.policies.selections import SELECTION, selections
from torchane.capture.rules import decompositions

aten = torch.ops.aten

X = torch.randn(4, 16, 16)
#: Constants, conditions, and what tests for NaN: where they are computed says nothing of a branch.
ASIDE = {"scalar_tensor", "isnan", "eq", "ne", "abs", "logical_not", "bitwise_not", "gt", "lt", "detach"}


def causal() -> Tensor:
    return torch.ones(16, 16, dtype=torch.bool).tril()


def product(x: Tensor) -> Tensor:
    return x @ torch.ones(16, 16)


def sent_to_host(function: Callable[..., Tensor], data: bool = False) -> set[str]:
    """The ops that go, without their overloads."""
    graph = make_fx(function, decomposition_table=decompositions(), tracing_mode="fake")(X).graph
    inputs = frozenset(node for node in graph.nodes if node.op == "placeholder")
    found = selections(graph, Facts(chips.load("portable"), data=inputs if data else frozenset()))
    assert all(why.startswith(SELECTION) for why in found.values())
    return {str(node.target).removeprefix("aten.").partition(".")[0] for node in found}


STAYS = {
    "a causal mask by where": lambda x: torch.where(causal(), x, -torch.inf).softmax(-1),
    "by masked_fill": lambda x: x.masked_fill(~causal(), -1e9).softmax(-1),
    "padding": lambda x: x.masked_fill(x.new_ones(16, 16, dtype=torch.bool), 0.0),
    "relu": F.relu,
    "a clamp": lambda x: x.clamp(-1, 1),
    "a comparison": lambda x: torch.where(x > 0, x, 0.1 * x),
    "after a sigmoid": lambda x: torch.where(x > 0, x.sigmoid(), x.tanh()),
    "an exponential that cannot grow": lambda x: torch.where(x > 0, x, (x.clamp(max=0)).exp() - 1),
    "an exponential under its maximum": lambda x: torch.where(x > 0, (x - x.amax(-1, keepdim=True)).exp(), 0.0),
    "a division by what keeps away from 0": lambda x: torch.where(x > 0, x / (x.abs() + 0.1), 0.0),
    "a root mean square norm": lambda x: torch.where(x > 0, x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt(), 0.0),
    "a layer norm": lambda x: F.layer_norm(x, (16,)).masked_fill(~causal(), 0.0),
    "1 / x that nothing selects": lambda x: 1 / x,
    "what a product has summed": lambda x: torch.where(causal(), product(x.exp()), 0.0),
    "elu": lambda x: F.elu(x) + F.selu(x) + F.celu(x, 0.5) + F.leaky_relu(x),
    "softplus": F.softplus,
    "huber": lambda x: F.huber_loss(x, product(x)) + F.smooth_l1_loss(x, product(x)),
    "masked softmax": lambda x: aten._safe_softmax(x + torch.where(causal(), 0.0, -torch.inf), -1),
}


@pytest.mark.parametrize("form", STAYS)
def test_finite_branches_stay(form: str) -> None:
    assert sent_to_host(lambda x: STAYS[form](product(x))) == set()


GOES = {
    "1 / x": (lambda x: torch.where(x > 0, x.reciprocal(), 0.0), {"reciprocal", "where"}),
    "x / y": (lambda x: torch.where(x > 0, product(x) / x, 0.0), {"div", "where"}),
    "log": (lambda x: torch.where(x > 0, x.log(), x), {"log", "where"}),
    "sqrt, for its gradient": (lambda x: x.sqrt().masked_fill(~causal(), 0.0), {"sqrt", "masked_fill"}),
    "a power": (lambda x: torch.where(x > 0, x**-1.3, 0.0), {"pow", "where"}),
    "a square of anything": (lambda x: torch.where(x.abs() < 1, x * x, x), {"mul", "where"}),
    "exp, and what is done with it": (lambda x: torch.where(x > 0, x, 2 * x.exp() - 1), {"exp", "mul", "sub", "where"}),
    "expm1": (lambda x: torch.where(x > 0, x, x.expm1()), {"expm1", "where"}),
    "in either branch": (lambda x: torch.where(x > 0, x, x.rsqrt()), {"rsqrt", "where"}),
    "a constant that is NaN": (lambda x: torch.where(x > 0, x, torch.nan), {"where"}),
    "a constant that is infinite": (lambda x: x.masked_fill(~causal(), torch.inf), {"masked_fill"}),
    "a triangle": (lambda x: x.log().tril(), {"log", "tril"}),
    "a mask that is multiplied": (lambda x: x.log() * causal(), {"log", "mul"}),
    "a relu of 1 / x": (lambda x: x.reciprocal().relu(), {"reciprocal", "relu"}),
    "a comparison of exp": (lambda x: torch.where(x.exp() > 5, x, 0.0), {"exp", "gt"}),
    "is it NaN": (lambda x: torch.where(torch.isnan(x), 0.0, x), {"where"}),
    "is it finite": (lambda x: x.masked_fill(~torch.isfinite(x), 0.0), {"masked_fill"}),
    "nan_to_num": (lambda x: torch.nan_to_num(x), {"nan_to_num"}),
}


@pytest.mark.parametrize("form", GOES)
def test_a_branch_that_may_not_be_finite_goes_with_its_selection(form: str) -> None:
    function, expected = GOES[form]
    found = sent_to_host(lambda x: function(product(x)))
    assert found - ASIDE == expected - ASIDE
    assert expected <= found


def test_data_may_hold_anything() -> None:
    """A NaN marks a missing target, 1e20 what lies outside; a product with it makes a number again."""
    assert "where" in sent_to_host(lambda x: torch.where(causal(), x, 0.0), data=True)
    assert "where" in sent_to_host(lambda x: torch.where(causal(), product(x) - x, 0.0), data=True)
    assert sent_to_host(lambda x: torch.where(causal(), product(x), 0.0), data=True) == set()


def test_a_gradient_is_selected_too() -> None:
    """Of log(clamp(x)): the quotient and the selection; a relu under a square root likewise."""
    def clamped(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(leaf.clamp(min=1e-4).log().sum(), leaf)[0]

    def root(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(leaf.relu().sqrt().sum(), leaf)[0]

    assert {"div", "where"} <= sent_to_host(clamped)
    assert {"div", "threshold_backward"} <= sent_to_host(root)
