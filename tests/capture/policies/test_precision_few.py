"""Norms over so few values that they leave signs: 1 - xhat^2 is eps / (variance + eps), 1e-5 and less, and is all that their gradient has."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from autocast import compiled, results
from precision_models import Model
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from torchane import chips
from torchane.capture.policies.facts import Facts
from torchane.capture.policies.precision import precision
from torchane.capture.rules import decompositions

#: Eight roundings to fp16 of what lies before the norm, whose size the gradient takes to the third power.
_MOST = 3 * 8 * 2.0**-11


def by_hand(x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def rows(*shape: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x.reshape(*shape)


#: name: what makes the norm's operand of a product's result (2, 16), the norm
FORMS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Any]] = {
    "BatchNorm1d, batch of 2": (rows(2, 16), lambda: nn.BatchNorm1d(16)),
    "BatchNorm1d without running averages, batch of 2": (rows(2, 16), lambda: nn.BatchNorm1d(16, track_running_stats=False)),
    "BatchNorm2d, batch of 2, one pixel": (rows(2, 16, 1, 1), lambda: nn.BatchNorm2d(16)),
    "BatchNorm2d, one image of 2 pixels": (rows(1, 16, 1, 2), lambda: nn.BatchNorm2d(16)),
    "InstanceNorm2d, 2 pixels": (rows(2, 8, 2, 1), lambda: nn.InstanceNorm2d(8, affine=True)),
    "GroupNorm, 2 channels of one pixel": (rows(2, 16, 1, 1), lambda: nn.GroupNorm(8, 16)),
    "GroupNorm, one channel of 2 pixels": (rows(2, 8, 1, 2), lambda: nn.GroupNorm(8, 8)),
    "LayerNorm of 2": (rows(2, 8, 2), lambda: nn.LayerNorm(2)),
    "LayerNorm of 2, by hand": (rows(2, 8, 2), lambda: Model(lambda m, x: by_hand(x))),
    "by its variance, of 2": (rows(2, 8, 2), lambda: Model(lambda m, x: (x - x.mean(-1, keepdim=True)) * (x.var(-1, keepdim=True) + 1e-5).rsqrt())),
    "RMSNorm of 1": (rows(2, 16, 1), lambda: nn.RMSNorm(1, eps=1e-5)),
}


def error_of_gradients(form: str, is_followed: bool = False) -> float:
    """Of the product's weight, relative to float64's; the operand's two values are 1 apart or more."""
    torch.manual_seed(0)
    shaped, norm = FORMS[form]
    model = Model(lambda m, x: m.norm(shaped(x @ m.w)).reshape(2, 16), w=torch.eye(16), norm=norm())
    if is_followed:
        model = nn.Sequential(model, nn.ReLU(), nn.Linear(16, 16), nn.GELU())
    signs = torch.tensor([1.0, -1.0]).repeat(16).view(2, 16) * torch.tensor([[1.0], [-1.0]])
    x = signs * (0.5 + torch.rand(2, 16))
    right = results(copy.deepcopy(model).double(), [x.double()])[1]
    found = results(model, [x], compiled(model))[1]
    return ((found - right).norm() / right.norm()).item()


@pytest.mark.parametrize("form", ["BatchNorm1d, batch of 2", "GroupNorm, one channel of 2 pixels", "LayerNorm of 2, by hand"])
def test_the_gradient_of_a_norm_that_leaves_signs_is_right(form: str) -> None:
    assert error_of_gradients(form) <= _MOST


@pytest.mark.long
@pytest.mark.parametrize("is_followed", [False, True], ids=["returned", "read by a product"])
@pytest.mark.parametrize("form", FORMS)
def test_every_norm_that_leaves_signs_has_a_right_gradient(form: str, is_followed: bool) -> None:
    assert error_of_gradients(form, is_followed) <= _MOST


NORMS = {
    "layer": lambda x: F.layer_norm(x.T, x.shape[:1]),
    "group": lambda x: F.group_norm(x.T[:, :, None], 1),
    "by hand": lambda x: by_hand(x.T),
}


@pytest.mark.parametrize(("count", "is_sent"), [(2, True), (3, False)])
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_over_two_values_is_the_hosts_and_over_three_a_programs(norm: str, count: int, is_sent: bool) -> None:
    graph = make_fx(
        lambda x, w: (y := NORMS[norm](x @ w)).reshape(-1, y.shape[1]) @ y.new_ones(y.shape[1], 4),
        decomposition_table=decompositions(), tracing_mode="fake",
    )(torch.randn(count, 4), torch.randn(4, 4)).graph  # fmt: skip
    raw = frozenset(node for node in graph.nodes if node.op == "placeholder")
    found = precision(graph, Facts(chips.load("portable"), raw=raw))
    assert {"over 2 values" in why for why in found.values()} == ({True} if is_sent else set())
