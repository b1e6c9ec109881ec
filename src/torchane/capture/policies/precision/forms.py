"""Forms of arithmetic that programs compute safely: a norm written by hand.

    s = x * x;  m = mean(s) or sum(s) over rows;  v = m + eps, or max(m, eps), or m * c;  r = v ** -0.5 or v ** 0.5
`passes/scale_squares.py` keeps the squares of such a row inside fp16, and a row of any size within 0.4 % (docs/numerics.md).
A sum of squares that anything else reads is no norm.
"""

from collections.abc import Iterator

import torch
from torch import fx

from torchane.capture.graph import VIEWS

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
