"""Every rule's op at the edges of fp16, forward and gradient: no further off than 1.2 times the better autocast.

The op's operands are results of products, which autocast rounds as we do. What fp16 is not enough for is on the host by then.
Left out is what lies beyond fp16 in a product's operand or result, forward or backward: e^64, 1e-4 * 1e-4.
"""

import warnings

import pytest
import torch
from autocast import Compared, compiled, error_of, gradients_of, right_and_autocast
from cases import CASES, Draw
from torch import nn
from torch.utils._pytree import tree_flatten

from torchane.abi.numbers import FP16_MAX
from torchane.capture.rules import RULES
from torchane.capture.rules.decompose import batch_moments

pytestmark = pytest.mark.long
aten = torch.ops.aten


#: A result of this size and more has three digits in fp16.
SMALLEST = 2.0**-16


class Spread(Draw):
    """Magnitudes from 1e-3 to 100, both signs."""

    def x(self, *shape: int) -> torch.Tensor:
        size = 10 ** (torch.rand(shape or self.shape, generator=self.generator) * 5 - 3)
        return size * (torch.rand(size.shape, generator=self.generator) - 0.5).sign()


class Offset(Draw):
    """Near 64, a quarter apart: differences are small."""

    def x(self, *shape: int) -> torch.Tensor:
        return 64 + torch.randn(shape or self.shape, generator=self.generator) / 4


class Small(Draw):
    def x(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape or self.shape, generator=self.generator) * 1e-4


EDGES = {"spread": Spread, "offset": Offset, "small": Small}
#: Ops that are given a gradient or a mask of their own, or that autograd does not see; values are moved, not computed.
MOVES = {"constants", "shape", "slices", "dropout", "selection"}
LEFT_OUT = {aten.copy.default, batch_moments, aten._adaptive_avg_pool2d.default}
SWEPT = [
    target for target, rule in RULES.items()
    if "backward" not in str(target) and rule.family not in MOVES and target not in LEFT_OUT
]  # fmt: skip


class Called(nn.Module):
    """The op on parameters that a product of one factor rounds: autocast's and ours alike."""

    def __init__(self, target, args, kwargs):
        super().__init__()
        self.target, self.args, self.kwargs = target, list(args), kwargs
        self.places = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor) and arg.is_floating_point()]
        self.given = nn.ParameterList(args[i].clone() for i in self.places)
        self.register_buffer("one", torch.ones(1, 1))

    def forward(self):
        args = list(self.args)
        for place, parameter in zip(self.places, self.given, strict=True):
            args[place] = nn.functional.linear(parameter[..., None], self.one)[..., 0]
        return self.target(*args, **self.kwargs)


class Many(nn.Module):
    """One graph for all ops of a family: to compile is what takes the time."""

    def __init__(self, calls):
        super().__init__()
        self.calls = nn.ModuleList(calls)

    def forward(self):
        return [call() for call in self.calls]


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("family", sorted({RULES[target].family for target in SWEPT}))
def test_ops_at_the_edges_are_as_good_as_autocast(family, edge):
    calls = []
    for target in SWEPT:
        if RULES[target].family == family:
            draws = (make(EDGES[edge]((2, 3, 4, 2), torch.Generator().manual_seed(0))) for make in CASES[target])
            calls += [Called(target, *draw) for draw in draws]
    expected = {call: right_and_autocast(call, ()) for call in calls}
    fitting = [call for call, (right, _) in expected.items() if all(SMALLEST < y.abs().max() < FP16_MAX for y in right)]
    if not fitting:
        pytest.skip("every op of the family leaves fp16's range here")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = compiled(many := Many(fitting))()
    worse = {}
    for call, outputs in zip(many.calls, found, strict=True):
        right, autocast = expected[call]
        floats = [y for y in tree_flatten(outputs)[0] if isinstance(y, torch.Tensor) and y.is_floating_point()]
        ours = [*(y.detach().double() for y in floats), *gradients_of(floats, list(call.parameters()))]
        compared = Compared(error_of(ours, right), autocast)
        if not compared.is_as_good:
            worse[str(call.target)] = compared
    assert not worse
