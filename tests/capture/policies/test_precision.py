"""Which ops precision sends to the host, and which proven forms stay: the policy alone, on traced graphs.

Values that come from a product are written `product(x)`; the others are the caller's own.
"""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from torchane import chips
from torchane.capture.policies.facts import Facts
from torchane.capture.policies.precision import PRECISION, precision
from torchane.capture.rules import decompositions

X = torch.randn(4, 16, 16)


def product(x: torch.Tensor) -> torch.Tensor:
    return x @ torch.ones(16, 16)


def sent_to_host(function: Callable[..., torch.Tensor], *inputs: torch.Tensor, **facts: object) -> dict[str, str]:
    """The ops that the policy sends to the host, by name without overload, with the reason."""
    graph = make_fx(function, decomposition_table=decompositions(), tracing_mode="fake")(*inputs).graph
    raw = [node for node in graph.nodes if node.op == "placeholder"]
    result = graph.output_node().args[0]
    found = precision(graph, Facts(chips.load("portable"), raw=frozenset(raw), given=frozenset([result]), **facts))
    assert all(why.startswith(PRECISION) for why in found.values())
    return {str(node.target).removeprefix("aten.").partition(".")[0]: why for node, why in found.items()}


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


STAYS = {
    "RMSNorm written by hand": rms_norm,
    "RMSNorm as a power": lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-5) ** -0.5,
    "LayerNorm": lambda x: F.layer_norm(x, (16,)),
    "LayerNorm written by hand": lambda x: (x - x.mean(-1, keepdim=True)) / ((x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + 1e-5).sqrt(),
    "softmax": lambda x: x.softmax(-1),
    "softmax written by hand": lambda x: (e := torch.exp(x - x.amax(-1, keepdim=True))) / e.sum(-1, keepdim=True),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu written by hand": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3)))),
    "squared relu": lambda x: F.relu(x).square(),
    "a decay": lambda x: torch.exp(-F.softplus(x)),
    "a decay by a clamp": lambda x: torch.exp(x.clamp(max=0)),
    "a residual sum": lambda x: x + F.silu(x),
    "rotation by a table": lambda x: x * torch.arange(16).cos() + torch.cat([-x[..., 8:], x[..., :8]], -1) * torch.arange(16).sin(),
    "softcap": lambda x: torch.tanh(x / 30) * 30,
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "a mean over positions": lambda x: x.mean(1),
}


@pytest.mark.parametrize("form", STAYS)
def test_what_programs_are_proven_for_stays(form: str) -> None:
    assert sent_to_host(lambda x: product(STAYS[form](product(x))), X) == {}


GOES = {
    "an angle of many turns": (lambda x: (100 * x).sin(), {"sin", "mul"}),
    "an exponential": (lambda x: x.exp(), {"exp"}),
    "an exponential and what it is multiplied by": (lambda x: x.exp() * x, {"exp", "mul"}),
    "sinh": (lambda x: x.sinh(), {"sinh"}),
    "a running sum": (lambda x: x.cumsum(1), {"cumsum"}),
    "a difference of running sums": (lambda x: (c := x.cumsum(1)) - c[:, :1], {"cumsum", "sub", "slice"}),
    "decay of a running sum": (lambda x: torch.exp((c := F.logsigmoid(x).cumsum(1)) - c[:, -1:]), {"cumsum", "exp", "sub", "slice", "neg", "log1p"}),
    "the logarithm of a softmax": (lambda x: (x.softmax(-1) + 1e-9).log(), {"log", "add", "_softmax"}),
    "the logarithm of a sigmoid": (lambda x: (1 - x.sigmoid()).log(), {"log", "rsub", "sigmoid"}),
    "a broken power": (lambda x: x**0.3, {"pow"}),
    "a norm with an epsilon of 1e-12": (lambda x: F.normalize(x, dim=-1), {"linalg_vector_norm", "clamp_min", "div"}),
    "a quotient with 1e-9": (lambda x: x / (x.abs().sum(-1, keepdim=True) + 1e-9), {"add", "sum", "div"}),
    "the variance as a difference of squares": (
        lambda x: x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2, {"mean", "sub", "pow"},
    ),
    "distances": (lambda x: (x[:, :, None] - x[:, None]).square().sum(-1), {"sum", "pow", "sub"}),
    "a router's choice": (lambda x: x.softmax(-1).topk(2).values, {"_softmax"}),
    "a product of many": (lambda x: x.prod(-1), {"prod"}),
    "the inverse of an error function": (lambda x: torch.erfinv(x), {"erfinv"}),
}  # fmt: skip


@pytest.mark.parametrize("form", GOES)
def test_what_magnifies_roundings_goes_to_the_host_with_what_it_reads(form: str) -> None:
    function, ops = GOES[form]
    found = set(sent_to_host(lambda x: torch.relu(function(product(x))), X))
    assert ops <= found, found
    assert found <= ops | {"relu", "view", "expand", "abs", "minimum"}, found


LOSSES = {
    "mse": lambda x, y: F.mse_loss(x, y),
    "mse, summed": lambda x, y: F.mse_loss(x, y, reduction="sum"),
    "huber": lambda x, y: F.huber_loss(x, y),
    "l1": lambda x, y: F.l1_loss(x, y),
    "by hand": lambda x, y: ((x - y) ** 2).mean(),
    "log-cosh": lambda x, y: (x - y).cosh().log().mean(),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_the_hosts(loss: str) -> None:
    found = sent_to_host(lambda x, y: LOSSES[loss](product(x), y), X, X)
    assert {"sub", "mean", "sum"} & set(found)
    graph = make_fx(lambda x, y: LOSSES[loss](product(x), y), decomposition_table=decompositions(), tracing_mode="fake")(X, X).graph
    ops = {str(node.target).removeprefix("aten.").partition(".")[0] for node in graph.nodes if node.op == "call_function"}
    assert ops - set(found) <= {"view", "_unsafe_view", "mm", "bmm", "expand", "full", "ones"}


def test_the_callers_own_numbers_are_computed_with_at_home_up_to_a_product() -> None:
    found = sent_to_host(lambda x: torch.relu(product((x - 1900) / 20)), X)
    assert set(found) == {"sub", "div"}


def test_fp16_sends_nothing_to_the_host() -> None:
    assert sent_to_host(lambda x: product(x).exp(), X, precision="fp16") == {}
