"""Forms of arithmetic that programs compute safely: a norm written by hand.

    s = x * x;  m = mean(s) or sum(s) over rows;  v = m + eps, or max(m, eps), or m * c;  r = v ** -0.5 or v ** 0.5
`passes/scale_squares.py` keeps the squares of such a row inside fp16, and a row of any size within 0.4 % (docs/numerics.md).
A sum of squares that anything else reads is no norm.

A norm over two values leaves the sign of their difference, and of its gradient only what epsilon makes: 1 - xhat^2 is eps / (variance + eps),
which a difference of numbers rounded to fp16 does not hold. So does an RMS norm over one.
"""

import math
import operator
from collections.abc import Iterator, Sequence

import torch
from torch import fx

from torchane.capture.graph import VIEWS
from torchane.capture.rules.common import axes_of
from torchane.capture.rules.decompose import batch_moments

aten = torch.ops.aten

#: The least epsilon that fp16 tells from nothing.
LEAST_EPSILON = 2.0**-24
#: The least that a norm's program has room for under its root (`passes/scale_squares.py`).
LEAST_IN_NORM = 2.0**-31.8

_SUMS = frozenset({aten.mean.dim, aten.sum.dim_IntList, aten.mean.default, aten.sum.default})
_ROOTS = frozenset({aten.rsqrt.default, aten.sqrt.default})
_GUARDS = frozenset({
    aten.add.Tensor, aten.add.Scalar, aten.clamp.default, aten.clamp_min.default, aten.mul.Tensor, aten.mul.Scalar,
    aten.div.Tensor, aten.div.Scalar,
})  # fmt: skip

_VARIANCES = frozenset({aten.var_mean.correction, aten.var.correction, aten.std.correction, aten.var.dim, aten.std.dim})

_ADDED = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.neg.default})
_SCALED = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar})


def is_square(node: fx.Node) -> bool:
    if node.target is aten.pow.Tensor_Scalar:
        return node.args[1] == 2
    return node.target is aten.square.default or (node.target is aten.mul.Tensor and node.args[0] is node.args[1])


def square_sums(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(square, sum of it) wherever squares are summed."""
    for node in graph.nodes:
        if node.target in _SUMS and isinstance(node.args[0], fx.Node):
            square = without_views(node.args[0])
            if is_square(square):
                yield square, node


def norm_of(square: fx.Node, total: fx.Node) -> frozenset[fx.Node]:
    """The nodes of the norm that a sum of squares belongs to, roots included; empty where it is none."""
    found: set[fx.Node] = {square, total}
    pending = [total]
    while pending:
        for user in readers(pending.pop()):
            if user in found:
                continue
            if is_root(user):
                found.add(user)
            elif user.target in VIEWS or (user.target in _GUARDS and not any(isinstance(arg, fx.Node) for arg in user.args[1:])):
                found.add(user)
                pending.append(user)
            else:
                return frozenset()
    return frozenset(found) if any(map(is_root, found)) else frozenset()


def leaves_only_signs(node: fx.Node) -> str | None:
    """What a norm, or the moments that one is made of, is taken over, where these are so few values that nothing but signs is left."""
    counts = _counted(node)
    if counts is None:
        return None
    count, most = counts
    return f"{count} value{'s' * (count > 1)}" if count <= most else None


def _counted(node: fx.Node) -> tuple[int, int] | None:
    """(how many values a norm is over, up to how many of them leave only signs)."""
    shape = node.args[0].meta["val"].shape if node.args and isinstance(node.args[0], fx.Node) and _is_tensor(node.args[0]) else ()
    if node.target is batch_moments:
        return math.prod(shape) // max(shape[1], 1), 2
    if node.target is aten.native_layer_norm.default:
        return math.prod(node.args[1]), 2
    if node.target is aten._fused_rms_norm.default:
        return math.prod(node.args[1]), 1
    if node.target is aten.native_group_norm.default:
        _, _, _, _, channels, positions, groups = node.args[:7]
        return channels * positions // groups, 2
    if node.target in _VARIANCES:
        return _reduced(node, shape), 2
    if node.target in _SUMS and is_square(base := without_views(node.args[0])):
        return _reduced(node, shape), 2 if is_centring(without_views(base.args[0])) else 1
    return None


def norm_around(node: fx.Node) -> Iterator[fx.Node]:
    """The norm written by hand that a variance, a deviation or a sum of squares belongs to: what centres its operand, what leads from it to a
    root, and what reads the root."""
    source = without_views(node.args[0])
    source = without_views(source.args[0]) if is_square(source) else source
    yield from filter(is_centring, (source, *source.all_input_nodes, *readers(source)))
    pending, found = [(node, _is_deviation(node))], {node}
    while pending:
        value, is_rooted = pending.pop()
        for user in readers(value):
            if user in found:
                continue
            found.add(user)
            yield user
            is_part = user.target in VIEWS or user.target is operator.getitem or user.target in _GUARDS or is_root(user)
            if is_part and not (is_rooted and user.target not in VIEWS):
                pending.append((user, is_rooted or is_root(user)))


def _is_deviation(node: fx.Node) -> bool:
    return getattr(node.target, "overloadpacket", None) is aten.std


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _reduced(node: fx.Node, shape: Sequence[int]) -> int:
    return math.prod(shape[axis] for axis in axes_of(node.args[1] if len(node.args) > 1 else None, len(shape)))


def is_root(node: fx.Node) -> bool:
    """A square root or its reciprocal, however it is written."""
    return node.target in _ROOTS or (node.target is aten.pow.Tensor_Scalar and abs(node.args[1]) == 0.5)


def is_centring(node: fx.Node) -> bool:
    """x - mean(x), mean(x) itself where that is all it is for, or x - amax(x): the first step of a norm or a softmax."""
    if node.target in (aten.mean.dim, aten.mean.default):
        return bool(readers(node)) and all(user.target is aten.sub.Tensor and is_centring(user) for user in readers(node))
    if node.target is not aten.sub.Tensor or not isinstance(node.args[1], fx.Node):
        return False
    other = without_views(node.args[1])
    is_mean = other.target in (aten.mean.dim, aten.mean.default, aten.amax.default)
    return is_mean and isinstance(node.args[0], fx.Node) and other.args[0] is node.args[0]


def readers(node: fx.Node) -> list[fx.Node]:
    """Readers of a value; what the forward computes ahead for the backward, and saves, is no reader of the model's own."""
    return [user for user in node.users if user.op != "output" and user.meta.get("partitioner_tag") != "is_backward"]


def without_views(node: fx.Node) -> fx.Node:
    while node.target in VIEWS and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node


def linear_sources(node: fx.Node) -> Iterator[fx.Node]:
    """What an op adds and subtracts, through further sums, signs, and factors that are Python numbers."""
    pending = list(node.all_input_nodes)
    while pending:
        source = without_views(pending.pop())
        yield source
        is_scaled = source.target in _SCALED and not isinstance(source.args[1], fx.Node)
        if is_scaled or source.target in _ADDED:
            pending.extend(source.all_input_nodes)
