"""Masks that are made by multiplying: (1 - m) * -1e9, as BERT, GPT and tensor2tensor code write them.

A program would hold -infinity where that says -1e9, and a row that is masked throughout would be NaN, where PyTorch gives equal
shares. So the host multiplies, in fp32, and where the product is staged a number that is the factor (m was 1), or a small
multiple of it (two masks added), becomes what programs write for a masked score (`runtime.execute`). Any other number of the
product stays what it is, and an infinity where fp16 has none in its place: that is an overflow, and said to be one.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import fx

from torchane.abi.numbers import LEFT_OUT
from torchane.capture.graph import VIEWS
from torchane.capture.policies.facts import Facts
from torchane.capture.policies.nonfinite import FILL, packet_of

aten = torch.ops.aten

_MULTIPLIED = "it multiplies by {:g}, as masks are made, and programs hold numbers up to 65504"


def mask_products(graph: fx.Graph, facts: Facts) -> Mapping[fx.Node, str]:
    """The policy."""
    factors = {node: mask_factor(node) for node in graph.find_nodes(op="call_function", target=aten.mul.Tensor)}
    factors |= {node: mask_factor(node) for node in graph.find_nodes(op="call_function", target=aten.mul.Scalar)}
    return {node: _MULTIPLIED.format(factor) for node, factor in factors.items() if factor is not None}


def mask_factor(node: fx.Node) -> float | None:
    """The Python number that a product is taken with, if it is of a mask's size."""
    if packet_of(node) is not aten.mul:
        return None
    for factor, other in (node.args[::-1], node.args):
        is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if is_number and abs(factor) >= -LEFT_OUT and packet_of(other) not in FILL:
            return float(factor)
    return None


def add_what_is_subtracted(graph: fx.Graph) -> None:
    """x - 1e9 (1 - m) as x + -1e9 (1 - m), in place: the same numbers, and a mask as every other."""
    for node in list(graph.find_nodes(op="call_function", target=aten.sub.Tensor)):
        views, source = [], node.args[1]
        while isinstance(source, fx.Node) and source.target in VIEWS and len(source.all_input_nodes) == 1:
            views.append(source)
            source = source.args[0]
        factor = mask_factor(source) if isinstance(source, fx.Node) else None
        if factor is None or node.kwargs:
            continue
        with graph.inserting_before(node):
            made = graph.node_copy(source)
            made.args = tuple(-arg if isinstance(arg, int | float) else arg for arg in source.args)
            for view in reversed(views):
                turned = graph.node_copy(view)
                turned.replace_input_with(view.args[0], made)
                made = turned
        node.target, node.args = aten.add.Tensor, (node.args[0], made)
        for unread in (*views, source):
            if not unread.users:
                graph.erase_node(unread)


def let_softmax_give_zeros(graph: fx.Graph) -> None:
    """A softmax whose NaN becomes 0, nan_to_num(softmax(x)) or masked_fill(p, isnan(p), 0), is one that gives zeros for a row of
    -inf, in place: what such models mean, and what programs can do."""
    for node in graph.find_nodes(op="call_function", target=aten._softmax.default):
        readers = list(_readers(node))
        fills = [reader for reader in readers if _makes_nan_zero(reader, node)]
        if fills and not node.args[2]:
            node.target, node.args = aten._safe_softmax.default, node.args[:2]


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        yield user
        if user.target in VIEWS:
            yield from _readers(user)


def _makes_nan_zero(reader: fx.Node, softmax: fx.Node) -> bool:
    packet = packet_of(reader)
    if packet is aten.nan_to_num:
        return len(reader.args) < 2 or not reader.args[1]
    if packet is not aten.isnan:
        return False
    chosen = [user for user in reader.users if packet_of(user) in (aten.masked_fill, aten.where)]
    fills = [user.args[2] if packet_of(user) is aten.masked_fill else user.args[1] for user in chosen]
    return bool(fills) and all(_is_zero(fill) for fill in fills)


def _is_zero(value: object) -> bool:
    if isinstance(value, fx.Node) and packet_of(value) in (aten.full, aten.scalar_tensor):
        value = value.args[-1]
    return isinstance(value, int | float) and value == 0


def factors_of(graph: fx.Graph, is_on_host: Callable[[fx.Node], bool]) -> dict[fx.Node, tuple[float, ...]]:
    """The factors of the masks that each value of the host is made of."""
    found: dict[fx.Node, tuple[float, ...]] = {}
    for node in graph.nodes:
        if node.op != "call_function" or not is_on_host(node):
            continue
        own = mask_factor(node)
        factors = {factor for source in node.all_input_nodes for factor in found.get(source, ())} | ({own} if own else set())
        if factors:
            found[node] = tuple(sorted(factors))
    return found
