"""Masks that are made by multiplying: (1 - m) * -1e9, as BERT, GPT and tensor2tensor code write them.

A program would hold -infinity where that says -1e9, and a row that is masked throughout would be NaN, where PyTorch gives equal
shares. So the host multiplies, in fp32, and where the product is staged a number that is the factor (m was 1), or a small
multiple of it (two masks added), becomes what programs write for a masked score (`runtime.execute`). Any other number of the
product stays what it is, and an infinity where fp16 has none in its place: that is an overflow, and said to be one.

A milder number that float32 still adds, -1e4, leaves fp16 no digits of the score. In a row that is masked throughout eager gives what
it would give without the mask, for a softmax does not see what all of a row has in common: so masks are levelled, by the host, to rows whose
largest number is 0 (`level_masks`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from torchane.abi.numbers import LEFT_OUT
from torchane.capture.graph import VIEWS
from torchane.capture.policies.facts import Facts
from torchane.capture.policies.nonfinite import FILL, packet_of
from torchane.capture.policies.precision import PRECISION

aten = torch.ops.aten

LEVELLED = f"{PRECISION}a row of a mask that a softmax reads is levelled, to 0 as its largest number"

#: Do not see what all numbers of a row have in common.
_SHIFTED = frozenset({aten._softmax, aten._safe_softmax, aten._log_softmax})

#: A Python number at most so large leaves fp16 the digits of a score that it is added to.
_MILD = 64.0

_MULTIPLIED = "it multiplies by {:g}, as masks are made, and programs hold numbers up to 65504"


def mask_products(graph: fx.Graph, facts: Facts) -> Mapping[fx.Node, str]:
    """The policy."""
    factors = {node: mask_factor(node) for node in graph.find_nodes(op="call_function", target=aten.mul.Tensor)}
    factors |= {node: mask_factor(node) for node in graph.find_nodes(op="call_function", target=aten.mul.Scalar)}
    return {node: _MULTIPLIED.format(factor) for node, factor in factors.items() if factor is not None}


def mask_factor(node: fx.Node, least: float = float(-LEFT_OUT)) -> float | None:
    """The Python number that a product is taken with, if it is of a mask's size."""
    if packet_of(node) is not aten.mul:
        return None
    for factor, other in (node.args[::-1], node.args):
        is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if is_number and abs(factor) >= least and packet_of(other) not in FILL:
            return float(factor)
    return None


def add_what_is_subtracted(graph: fx.Graph) -> None:
    """x - 1e9 (1 - m) as x + -1e9 (1 - m), in place: the same numbers, and a mask as every other."""
    for node in list(graph.find_nodes(op="call_function", target=aten.sub.Tensor)):
        views, source = [], node.args[1]
        while isinstance(source, fx.Node) and source.target in VIEWS and len(source.all_input_nodes) == 1:
            views.append(source)
            source = source.args[0]
        factor = mask_factor(source, _MILD) if isinstance(source, fx.Node) else None
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


def level_masks(graph: fx.Graph, inputs: Collection[fx.Node], masks: Collection[str]) -> tuple[dict[fx.Node, str], frozenset[str]]:
    """Levels masks that are added to scores, in place. Why the host makes them, and the names of those that were levelled.

    inputs: placeholders that may hold a mask, and want no gradient. masks: of a backward, the names that its forward levelled.
    """
    known = _made_of(graph, inputs)
    reasons: dict[fx.Node, str] = {}
    levelled: dict[tuple[fx.Node, ...], fx.Node] = {}
    for softmax in list(graph.nodes):
        if packet_of(softmax) not in _SHIFTED:
            continue
        for sums in _sums_of(softmax, lambda node: node.name in masks or node in known):
            found = tuple(mask for _, mask in sums)
            if not any(mask.name in masks or _may_be_steep(mask) for mask in found):
                continue
            if found not in levelled:
                levelled[found] = _level(graph, found, reasons)
                made = {node for mask in found for node in _ancestors(mask) if node in known and node.op == "call_function"}
                reasons |= dict.fromkeys(made, LEVELLED)
            sums[0][0].replace_input_with(found[0], levelled[found])
            for total, mask in sums[1:]:
                total.replace_all_uses_with(next(arg for arg in total.args if arg is not mask))
                graph.erase_node(total)
    return reasons, frozenset(mask.name for found in levelled for mask in found)


def _made_of(graph: fx.Graph, inputs: Collection[fx.Node]) -> set[fx.Node]:
    """What comes of these inputs and of constants alone, and is the same each time that it is computed."""
    known = set(inputs)
    for node in graph.nodes:
        is_call = node.op == "call_function" and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())
        if node.op == "get_attr" or (is_call and known.issuperset(node.all_input_nodes)):
            known.add(node)
    return known


def _sums_of(softmax: fx.Node, is_mask: Callable[[fx.Node], bool]) -> Iterator[list[tuple[fx.Node, fx.Node]]]:
    """The sums that a softmax along the last axis reads, and nothing else does, each with the mask that it adds: in groups of one
    shape, the one that is read last first."""
    node = softmax.args[0]
    group: list[tuple[fx.Node, fx.Node]] = []
    is_alone = all(_is_along_rows(user) for user in node.users)  # one along another axis sees what is taken off a row
    while is_alone:
        inner, mask = _parts_of(node, is_mask)
        if mask is not None:
            group.append((node, mask))
        elif node.target in VIEWS and group:  # masks on either side of it have other shapes
            yield group
            group = []
        if inner is None:
            break
        node, is_alone = inner, len(inner.users) == 1
    if group:
        yield group


def _is_along_rows(node: fx.Node) -> bool:
    return packet_of(node) in _SHIFTED and node.args[1] in (-1, node.meta["val"].dim() - 1)


def _parts_of(node: fx.Node, is_mask: Callable[[fx.Node], bool]) -> tuple[fx.Node | None, fx.Node | None]:
    """What a sum or a view hands on, and the mask that it adds."""
    if node.target in VIEWS:
        return (node.args[0] if _keeps_rows(node) else None), None
    is_sum = packet_of(node) is aten.add and not node.kwargs and node.meta["val"].dtype == torch.float32
    if not is_sum or not all(isinstance(arg, fx.Node) for arg in node.args):
        return None, None
    for mask, other in (node.args[::-1], node.args):
        if is_mask(mask) and not is_mask(other) and _has_rows_of(mask, node) and other.meta["val"].shape == node.meta["val"].shape:
            return other, mask
    sums = [arg for arg in node.args if packet_of(arg) is aten.add and arg.meta["val"].shape == node.meta["val"].shape]
    return (sums[0] if len(sums) == 1 else None), None


def _keeps_rows(view: fx.Node) -> bool:
    source = view.all_input_nodes[0].meta["val"]
    moves = packet_of(view) in (aten.permute, aten.transpose, aten.t)
    return not moves and source.dim() > 0 and source.shape[-1] == view.meta["val"].shape[-1]


def _has_rows_of(mask: fx.Node, total: fx.Node) -> bool:
    value, whole = mask.meta["val"], total.meta["val"]
    return value.dim() > 0 and value.shape[-1] == whole.shape[-1] and value.dtype == torch.float32


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, pending = {node}, [node]
    while pending:
        new = [source for source in pending.pop().all_input_nodes if source not in found]
        found.update(new)
        pending += new
    return found


def _may_be_steep(mask: fx.Node) -> bool:
    """It may hold a number that fp16 adds no score to and float32 does: what comes in may, and what Python writes does."""
    for node in _ancestors(mask):
        value = node.meta.get("val")
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        if node.op != "call_function":
            if is_float:
                return True
            continue
        numbers = [arg for arg in node.args if isinstance(arg, int | float) and not isinstance(arg, bool)]
        if is_float and any(_MILD < abs(number) < -LEFT_OUT for number in numbers):
            return True
    return False


def _level(graph: fx.Graph, masks: Sequence[fx.Node], reasons: dict[fx.Node, str]) -> fx.Node:
    """The sum of the masks, less the largest number of each row, if that is one that float32 adds a score to. Behind the last of them:
    several sums may read it."""

    def call(target: Any, *args: Any) -> fx.Node:
        made = graph.call_function(target, args)
        made.meta |= {key: value for key, value in masks[0].meta.items() if key in ("stack_trace", "partitioner_tag")}
        made.meta["val"] = target(*fx.node.map_arg(args, lambda source: source.meta["val"]))
        reasons[made] = LEVELLED
        return made

    last = next(node for node in reversed(graph.nodes) if node in masks)
    after = last if last.op != "placeholder" else graph.find_nodes(op="placeholder")[-1]
    with graph.inserting_before(after.next):
        mask = masks[0]
        for other in masks[1:]:
            mask = call(aten.add.Tensor, other, mask)
        largest = call(aten.amax.default, mask, [-1], True)
        is_beyond = call(aten.ge.Scalar, call(aten.abs.default, largest), float(-LEFT_OUT))
        return call(aten.sub.Tensor, mask, call(aten.masked_fill.Scalar, largest, is_beyond, 0.0))


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
