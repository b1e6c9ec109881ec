"""The table of ops that a scale passes through, beside what torch computes for scaled arguments."""

import operator
from collections.abc import Callable, Iterator
from itertools import combinations

import pytest
import torch
from cases import CASES, Call, Draw
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from torchane.capture.policies.homogeneous import TERMS, is_homogeneous, zeros_in
from torchane.capture.rules import RULES

aten = torch.ops.aten
FACTOR = 2.0**7


def calls(target: torch._ops.OpOverload) -> Iterator[Call]:
    for make in CASES[target]:
        args, kwargs = make(Draw((2, 3, 4, 2), torch.Generator().manual_seed(0)))
        yield tree_map(lambda leaf: leaf.double() if _is_float(leaf) else leaf, (args, kwargs))


def _is_float(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


#: torch has no kernel of it for a CPU.
NOT_COMPUTED = {aten._fused_rms_norm_backward.default}


@pytest.mark.parametrize("target", [target for target in RULES if target.overloadpacket in TERMS and target not in NOT_COMPUTED], ids=str)
def test_what_is_called_homogeneous_is(target: torch._ops.OpOverload) -> None:
    for args, kwargs in calls(target):
        leaves, spec = tree_flatten((args, kwargs))
        floats = [place for place, leaf in enumerate(leaves) if _is_float(leaf)]
        for chosen in (subset for count in (1, 2, 3) for subset in combinations(floats, count)):
            if _is_called_homogeneous(target, leaves, spec, chosen):
                scaled = [FACTOR * leaf if place in chosen else leaf for place, leaf in enumerate(leaves)]
                before, after = (_results(target, *tree_unflatten(given, spec)) for given in (leaves, scaled))
                for one, other in zip(before, after, strict=True):
                    torch.testing.assert_close(other, FACTOR * one, rtol=1e-12, atol=1e-12, equal_nan=True)


def _is_called_homogeneous(target, leaves, spec, chosen) -> bool:
    graph = fx.Graph()
    nodes = [graph.placeholder(f"x{place}") if isinstance(leaf, torch.Tensor) else leaf for place, leaf in enumerate(leaves)]
    args, kwargs = tree_unflatten(nodes, spec)
    scaled = [nodes[place] for place in chosen]
    return is_homogeneous(graph.call_function(target, args, kwargs), lambda arg: any(arg is one for one in scaled), ())


def _results(target, args, kwargs) -> list[torch.Tensor]:
    found = target(*args, **kwargs)
    return [one for one in (found if isinstance(found, tuple | list) else (found,)) if _is_float(one)]


def passed(function: Callable[..., torch.Tensor]) -> bool:
    """Whether every op between g and the result of function(g, h, x) passes a scale of g and h."""
    g, h, x = torch.randn(3, 4, 4).unbind()
    graph = make_fx(function)(g, h, x).graph
    scaled = set(list(graph.find_nodes(op="placeholder"))[:2])
    zeros = zeros_in(graph)
    for node in graph.nodes:
        if any(source in scaled for source in node.all_input_nodes) and node.op == "call_function":
            if node.target is not operator.getitem and not is_homogeneous(node, lambda arg: arg in scaled, zeros):
                return False
            scaled.add(node)
    return True


PASSED = {
    "relu": lambda g, h, x: torch.relu(g),
    "clamped at 0": lambda g, h, x: g.clamp(min=0),
    "clamped by another": lambda g, h, x: torch.clamp(g, h, h + h.abs()),
    "the larger of two": lambda g, h, x: torch.maximum(g, h),
    "magnitude": lambda g, h, x: g.abs() / x,
    "selected, or zero": lambda g, h, x: torch.where(x > 0, g, 0.0),
    "selected, or zeros": lambda g, h, x: torch.where(x > 0, g, torch.zeros_like(x)),
    "masked": lambda g, h, x: g.masked_fill(x > 0, 0.0) * (x > 1),
    "beside zeros": lambda g, h, x: torch.cat([g, torch.zeros(2, 4), h]),
    "a product with a sum": lambda g, h, x: torch.addmm(h, x, g),
    "padded": lambda g, h, x: torch.nn.functional.pad(g, (0, 3)),
    "summed, with zeros": lambda g, h, x: (g + torch.zeros(4, 4)).sum(0) * 0.1,
    "written over": lambda g, h, x: aten.copy(g, torch.zeros(4)) + aten.copy(x, h),
    "between two": lambda g, h, x: torch.lerp(g, h, x),
}
STOPPED = {
    "clipped": lambda g, h, x: g.clamp(-0.1, 0.1),
    "compared": lambda g, h, x: g > 0,
    "sign": lambda g, h, x: g.sign(),
    "product of two": lambda g, h, x: g * h,
    "a number added": lambda g, h, x: g + 1,
    "an activation added": lambda g, h, x: g - x,
    "an activation in a product's sum": lambda g, h, x: torch.addmm(x, x, g),
    "quotient of two": lambda g, h, x: g / h,
    "a divisor": lambda g, h, x: x / g,
    "beside an activation": lambda g, h, x: torch.cat([g, x]),
    "selected, or a number": lambda g, h, x: torch.where(x > 0, g, 1.0),
    "padded with ones": lambda g, h, x: torch.nn.functional.pad(g, (0, 3), value=1.0),
    "an activation written over it": lambda g, h, x: aten.copy(g, x),
    "norm": lambda g, h, x: g.norm(),  # proportional, but its squares leave fp16
    "saved for the gradient": lambda g, h, x: aten.tanh_backward(x, g),
    "a function": lambda g, h, x: torch.softmax(g, 0),
    "rounded down": lambda g, h, x: torch.div(g, x, rounding_mode="floor"),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSED)
def test_a_scale_passes_through(name: str) -> None:
    assert passed(PASSED[name])


@pytest.mark.parametrize("name", STOPPED)
def test_a_scale_does_not_pass_through(name: str) -> None:
    assert not passed(STOPPED[name])
