"""Results of programs that are zero throughout, or nearly: zeros of the model, or numbers that fp16 has no digits for?

    a weight of zeros (LoRA's B) ──► mm ──► zeros          proven from the graph
    exp(x - 20), in a program    ──► zeros                 PyTorch says what it is in float32: 2e-9
What float32 confirms is asked again after 1, 2, 4, ... further times, so that a value that stays zero (an expert that no token
reaches) costs little.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx

from torchane.capture.graph import VIEWS
from torchane.capture.policies.homogeneous import packet_of

aten = torch.ops.aten

#: Zero where any operand is; where the first is; where all are.
_PRODUCTS = frozenset({aten.mm, aten.bmm, aten.mul})
_OF_FIRST = frozenset({
    *(view.overloadpacket for view in VIEWS), aten.div, aten.sum, aten.neg, aten._to_copy, aten.slice, aten.select, aten.mean,
})  # fmt: skip
#: A sum with a product: zero where the first is and one of the others.
_ADDED_PRODUCTS = frozenset({aten.addmm, aten.baddbmm})
_SUMS = frozenset({aten.add, aten.sub, aten.cat, aten.stack})
#: The name that torch gives a gradient which its op's result is proportional to.
_GRADIENTS = ("grad", "grad_output", "grad_out", "out_grad")


class Doubts:
    """Which names are to be looked at, call by call."""

    def __init__(self) -> None:
        self._call = 0
        self._waits: dict[str, int] = {}
        self._due: dict[str, int] = {}

    def begin(self) -> None:
        """Another call of the graph."""
        self._call += 1

    def is_due(self, name: str) -> bool:
        """Whether a value that came out zero is to be looked at."""
        return self._due.get(name, 0) <= self._call

    def confirm(self, names: Iterable[str]) -> None:
        """They are zero in float32, too."""
        for name in names:
            self._waits[name] = 2 * self._waits.get(name, 0) or 1
            self._due[name] = self._call + 1 + self._waits[name]


def only_added(graph: fx.Graph) -> frozenset[str]:
    """Names of the values that are added to others, or are the mean that a norm takes off, and nothing else: what is faint in them is lost beside
    those, or is found in what they give."""
    found: dict[fx.Node, bool] = {}
    for node in reversed(graph.nodes):
        found[node] = bool(node.users) and all(found[user] if user.target in VIEWS else _adds(user, node) for user in node.users)
    return frozenset(node.name for node, is_so in found.items() if is_so)


def _adds(user: fx.Node, node: fx.Node) -> bool:
    if packet_of(user) in (aten.add, aten.sub):
        return True
    schema = getattr(user.target, "_schema", None)
    if schema is None:
        return False
    places = [argument.name for argument, arg in zip(schema.arguments, user.args, strict=False) if arg is node]
    return bool(places) and all("mean" in place for place in places)


def zeros_of(graph: fx.Graph, given: Mapping[str, Any]) -> frozenset[str]:
    """Names of the values that are zero because factors of theirs are, among the inputs that `given` has by name. Numbers that come
    out of fp16 prove nothing: leave them out."""
    zero: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            is_zero = _is_zero(given.get(node.name))
        elif node.op == "call_function":
            is_zero = _stays_zero(node, zero.__contains__)
        else:
            continue
        if is_zero:
            zero.add(node)
    return frozenset(node.name for node in zero)


def _is_zero(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 0 and not bool(value.any())


def _stays_zero(node: fx.Node, is_zero: Callable[[fx.Node], bool]) -> bool:
    packet, sources = packet_of(node), node.all_input_nodes
    if not sources:
        return False
    if packet in _PRODUCTS:
        return any(map(is_zero, sources))
    if packet in _ADDED_PRODUCTS:
        return is_zero(node.args[0]) and any(map(is_zero, node.args[1:3]))
    if packet is aten.convolution:
        return any(map(is_zero, node.args[:2])) and (node.args[2] is None or is_zero(node.args[2]))
    if packet in _SUMS:
        return all(map(is_zero, sources)) and not any(isinstance(arg, int | float) for arg in node.args)
    schema = getattr(node.target, "_schema", None)
    is_gradient = schema is not None and bool(schema.arguments) and schema.arguments[0].name in _GRADIENTS
    if packet in _OF_FIRST or is_gradient or node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and is_zero(node.args[0])
    return False
