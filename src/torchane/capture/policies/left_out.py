"""Where -inf may stand for "left out", and where it must be -inf.

    masked_fill(scores, mask, -inf) ──► softmax              -3e4 will do: nothing is left of either
    masked_fill(logits, mask, -inf) ──► returned, compared   -inf: the host
    x, an input ──► add(scores, x) ──► softmax               a mask, if it holds -1e9 or -inf
    x, an input ──► mul(x, 2) ──► returned                   numbers

fp16 has no room for -1e9, and -inf less -inf is NaN, so programs write -3e4 or -1e4 for what a softmax is to leave out
(capture/rules/selection.py, runtime/execute.py). That is right as long as a softmax, or another op that makes the same of either,
is all that reads it. Where one leaves the graph, is compared, or meets an op that tells them apart, the ops that made it and handed
it on run in PyTorch; an input whose numbers go that way is staged as it is.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from torchane.abi.numbers import FP16_MAX, LEFT_OUT
from torchane.capture.graph import CONTRACTIONS, VIEWS
from torchane.capture.policies.homogeneous import arguments, packet_of
from torchane.capture.rules.common import is_masking
from torchane.capture.torch_private import OpOverload, OpOverloadPacket

aten = torch.ops.aten

LEAVES = "its result may hold -inf, or a number beyond 65504, for what is left out, and is read as it is"

#: Hand a number that stands for -inf on, beside others.
_CARRIERS: Mapping[OpOverloadPacket, tuple[str, ...]] = {
    **{view.overloadpacket: ("self",) for view in VIEWS},
    **dict.fromkeys((aten._to_copy, aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.unbind, aten.repeat, aten.triu, aten.tril), ("self",)),
    **dict.fromkeys((aten.add, aten.where, aten.masked_fill), ("self", "other", "value")),
    aten.sub: ("self",),
    aten.mul: ("self",),
    aten.div: ("self",),
    **dict.fromkeys((aten.cat, aten.stack), ("tensors",)),
    aten.constant_pad_nd: ("self",),
    aten.copy: ("src",),
    **dict.fromkeys((aten.slice_scatter, aten.select_scatter), ("self", "src")),
}
#: Give the same for -3e4 as for -inf. logsumexp does not: of a row that is left out whole it is -inf.
_ABSORBERS = frozenset({
    aten._softmax, aten._safe_softmax, aten.exp, aten.exp2, aten.sigmoid, aten.tanh, aten.hardtanh,
    aten.hardsigmoid,
})  # fmt: skip
_COMPARISONS = frozenset({aten.gt, aten.lt, aten.ge, aten.le, aten.eq, aten.ne})


@dataclass(frozen=True)
class LeftOut:
    """reasons: why the host must run a node. numbers: values of the host that are none of masks, whatever they hold."""

    reasons: Mapping[fx.Node, str] = field(default_factory=dict)
    numbers: frozenset[fx.Node] = frozenset()


def left_out_of(
    graph: fx.Graph, static: Collection[fx.Node], data: Collection[fx.Node], given_back: Collection[fx.Node],
    is_on_host: Callable[[fx.Node], bool],
) -> LeftOut:  # fmt: skip
    """Follows what may hold -inf through a forward.

    static: placeholders of buffers, integers and masks. data: of floats that want no gradient. given_back: the caller's results.
    """
    constant = _constants(graph)
    known = _known_on_host(graph, constant, static, data, is_on_host)
    own = _constants_beyond(constant)  # an op of the graph put it there
    staged: set[fx.Node] = set()  # it comes with a value of the host
    for node in graph.nodes:
        if node in known or node in constant or node.op != "call_function" or is_on_host(node):
            continue
        sources = _carried(node)
        if _leaves_out(node) or any(source in own for source in sources):
            own.add(node)
        if any(source in known or source in staged for source in sources):
            staged.add(node)
    reasons: dict[fx.Node, str] = {}
    numbers: set[fx.Node] = set()
    carrying = own | staged
    pending = [
        node
        for node in (*known, *carrying)
        if _is_float(node) and _is_read_as_it_is(node, known, carrying, given_back, is_on_host, reasons)
    ]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node in known:
            numbers.add(node)
        elif node in own:
            apart = (user for user in node.users if _tells_apart(user, node) and not is_on_host(user))
            readers = [user for user in apart if node in constant or user.target not in CONTRACTIONS]  # else it is staged as it is
            reasons |= {one: LEAVES for one in (node, *readers) if one.target not in VIEWS}
        for source in _carried(node):
            if source not in seen and (source in known or source in carrying):
                seen.add(source)
                pending.append(source)
    return LeftOut(reasons, frozenset(numbers))


def _constants(graph: fx.Graph) -> set[fx.Node]:
    """What no tensor reaches."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_call = isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded not in node.target.tags
        if node.op == "get_attr" or (is_call and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def _constants_beyond(constant: Collection[fx.Node]) -> set[fx.Node]:
    """Those that programs read and that hold a number that fp16 has not: they are evaluated, as they will be once more."""
    made: dict[fx.Node, Any] = {}

    def value(node: fx.Node) -> Any:
        if node not in made:
            if node.op == "get_attr":
                made[node] = getattr(node.graph.owning_module, str(node.target))
            else:
                made[node] = node.target(*fx.node.map_arg(node.args, value), **fx.node.map_arg(node.kwargs, value))  # type: ignore[operator]
        return made[node]

    read = [node for node in constant if _is_float(node) and not all(user in constant for user in node.users)]
    return {node for node in read if value(node).numel() and not bool((value(node).abs() < -LEFT_OUT).all())}


def _known_on_host(
    graph: fx.Graph, constant: Collection[fx.Node], static: Collection[fx.Node], data: Collection[fx.Node],
    is_on_host: Callable[[fx.Node], bool],
) -> set[fx.Node]:  # fmt: skip
    """What no program computes and what comes of static inputs or data: it may be a mask where it is staged."""
    fixed = set(static)
    known = {*static, *data}
    for node in graph.nodes:
        sources = node.all_input_nodes
        if node.op != "call_function" or node in constant:
            continue
        if all(source in constant or source in fixed for source in sources):
            fixed.add(node)
            known.add(node)
        elif is_on_host(node) and all(source in constant or source in known for source in sources):
            known.add(node)
    return known


def _is_read_as_it_is(
    node: fx.Node, known: Collection[fx.Node], carrying: Collection[fx.Node], given_back: Collection[fx.Node],
    is_on_host: Callable[[fx.Node], bool], reasons: dict[fx.Node, str],
) -> bool:  # fmt: skip
    """A program reads or gives it as it is, or the host what a program made of it."""
    if node in carrying and node in given_back:
        return True
    for user in node.users:
        if user.op != "call_function" or user in carrying or user in known:
            continue
        if is_on_host(user):
            if node not in known:
                return True
        elif packet_of(user) in _COMPARISONS and node in known:
            reasons[user] = LEAVES
        elif _tells_apart(user, node):
            return True
    return False


def is_absorbed(node: fx.Node, is_in_program: Callable[[fx.Node], bool]) -> bool:
    """All programs that read a value give the same for -inf as for what stands for it."""
    for user in node.users:
        if user.target in VIEWS:
            if not is_absorbed(user, is_in_program):
                return False
        elif is_in_program(user) and packet_of(user) not in _ABSORBERS:
            return False
    return True


def _tells_apart(user: fx.Node, node: fx.Node) -> bool:
    """It neither hands -inf on nor makes the same of it and of what stands for it."""
    if user.op != "call_function" or node in _carried(user):
        return False
    return packet_of(user) not in _ABSORBERS and not _is_bounded(user)


def _is_bounded(node: fx.Node) -> bool:
    """clamp(x, min): with a bound that is well above -3e4."""
    if packet_of(node) not in (aten.clamp, aten.clamp_min):
        return False
    least = arguments(node).get("min")
    return isinstance(least, int | float) and least > -1e4


def _carried(node: fx.Node) -> list[fx.Node]:
    """The arguments that it hands on."""
    names = _CARRIERS.get(packet_of(node))
    if names is None:
        return list(node.all_input_nodes) if packet_of(node) is None else []  # one of several results
    given = arguments(node)
    found = [given.get(name) for name in names]
    items = [item for value in found for item in (value if isinstance(value, list | tuple) else (value,))]
    return [item for item in items if isinstance(item, fx.Node) and _is_float(item)]


def _leaves_out(node: fx.Node) -> bool:
    """It writes a number that fp16 has not, in words of Python."""
    packet = packet_of(node)
    if packet not in (aten.masked_fill, aten.where, aten.add, aten.sub, aten.rsub, aten.constant_pad_nd):
        return False
    given = arguments(node)
    numbers = [number for name in ("self", "other", "value") if (number := _number(given.get(name))) is not None]
    if packet in (aten.add, aten.sub, aten.rsub):  # smaller ones are the host's, or fit
        return any(abs(number * given.get("alpha", 1)) >= -LEFT_OUT for number in numbers)
    return any(map(_is_beyond, numbers))


def _is_beyond(number: float) -> bool:
    return is_masking(number) or number > FP16_MAX


def _number(arg: Any) -> float | None:
    return float(arg) if isinstance(arg, int | float) and not isinstance(arg, bool) else None


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()
