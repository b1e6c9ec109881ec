"""Results that share memory: what is written to one through another's name is there in both, cut to true sizes as well.

    results y, y[:, 0], y.detach()      y is cut to its true rows; the others are made of that, as views
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from torchane.capture.sizes.axes import expression_of
from torchane.capture.sizes.reasons import NotPaddable
from torchane.capture.torch_private import OpOverload


@dataclass(frozen=True)
class View:
    """Of another result. source: that one's position. chain: the ops from there on, each of the one before it."""

    source: int
    chain: tuple[fx.Node, ...]

    def of(self, tensor: torch.Tensor, true: Mapping[sympy.Symbol, int]) -> torch.Tensor:
        value: Any = tensor
        for node in self.chain:
            before = node.args[0]
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda arg, before=before, value=value: value if arg is before else _number(arg, true))
            value = node.target(*args, **kwargs)  # type: ignore[operator]
        result: torch.Tensor = value
        return result


def views_of(results: Sequence[Any], padded: Sequence[bool]) -> dict[int, View]:
    """By position, the results that are views of others. padded: whose sizes vary. Raises NotPaddable where two share memory and neither
    holds all of it."""
    found: dict[int, View] = {}
    bases: dict[fx.Node, int] = {}
    places = {node: i for i, node in reversed(list(enumerate(results))) if isinstance(node, fx.Node) and padded[i]}
    for i, node in enumerate(results):
        if not isinstance(node, fx.Node):
            continue
        chain: list[fx.Node] = []
        while node not in places or (places[node] == i and not chain):
            source = _viewed(node)
            if source is None:
                break
            chain.insert(0, node)
            node = source
        if places.get(node, i) != i:
            found[i] = View(places[node], tuple(chain))
        elif chain and node.op != "placeholder":
            other = bases.setdefault(node, i)
            if other != i and (padded[i] or padded[other]) and not _are_apart(results[i], results[other]):
                raise NotPaddable.at(results[i], "two results are views of one value, and may be written to through each other,")
    return found


def _viewed(node: fx.Node) -> fx.Node | None:
    """What it is a view of."""
    if node.target is operator.getitem:
        source = node.args[0]
        return source if isinstance(source, fx.Node) and _viewed(source) is not None else None
    if not isinstance(node.target, OpOverload) or not any(one.alias_info is not None for one in node.target._schema.returns):
        return None
    return node.args[0] if isinstance(node.args[0], fx.Node) else None


def _are_apart(a: fx.Node, b: fx.Node) -> bool:
    """Different parts of a split."""
    parts = [[node for node in _line(one) if node.target is operator.getitem] for one in (a, b)]
    return any(x.args[0] is y.args[0] and x.args[1] != y.args[1] for x in parts[0] for y in parts[1])


def _line(node: fx.Node) -> list[fx.Node]:
    found = [node]
    while (source := _viewed(found[-1])) is not None:
        found.append(source)
    return found


def _number(node: fx.Node, true: Mapping[sympy.Symbol, int]) -> int:
    expression = expression_of(node.meta["val"])
    return int(expression.xreplace(dict(true))) if isinstance(expression, sympy.Basic) else expression
