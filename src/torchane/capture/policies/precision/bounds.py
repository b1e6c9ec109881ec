"""Between which two numbers every value of a graph lies, as far as its ops say.

    softmax 0..1    tanh -1..1    x - amax(x) ..0    -softplus(x) ..0    everything else -inf..inf
Interval arithmetic over the graph, in its order. A bound is of exact numbers; fp16 rounds a number to no other side of it.
"""

import math
import operator
from collections.abc import Callable

import torch
from torch import fx

from torchane.capture.torch_private import OpOverload, OpOverloadPacket, unset_fake_temporarily

aten = torch.ops.aten

Interval = tuple[float, float]

ANY: Interval = (-math.inf, math.inf)
_POSITIVE: Interval = (0.0, math.inf)

#: Ops whose results lie between numbers that do not depend on what they are given.
_FIXED: dict[OpOverload, Interval] = {
    aten._softmax.default: (0.0, 1.0), aten._safe_softmax.default: (0.0, 1.0), aten.sigmoid.default: (0.0, 1.0),
    aten.hardsigmoid.default: (0.0, 1.0), aten.tanh.default: (-1.0, 1.0), aten.erf.default: (-1.0, 1.0),
    aten.sin.default: (-1.0, 1.0), aten.cos.default: (-1.0, 1.0), aten.sign.default: (-1.0, 1.0), aten.sgn.default: (-1.0, 1.0),
    aten.erfc.default: (0.0, 2.0), aten.atan.default: (-math.pi / 2, math.pi / 2), aten.rand.default: (0.0, 1.0),
    aten.rand_like.default: (0.0, 1.0), aten.rsqrt.default: _POSITIVE, aten.sqrt.default: _POSITIVE, aten.abs.default: _POSITIVE,
    aten.square.default: _POSITIVE, aten.softplus.default: _POSITIVE, aten.linalg_vector_norm.default: _POSITIVE,
    aten.var.correction: _POSITIVE, aten.std.correction: _POSITIVE, aten._log_softmax.default: (-math.inf, 0.0),
}  # fmt: skip

#: Ops whose results are among the numbers that they are given, or between them.
_HULLS = frozenset({
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.t.default, aten.transpose.int,
    aten.permute.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.detach.default, aten.alias.default, aten.clone.default, aten.expand.default, aten.lift_fresh_copy.default,
    aten._to_copy.default, aten.slice.Tensor, aten.select.int, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int,
    aten.flip.default, aten.roll.default, aten.repeat.default, aten.index.Tensor, aten.gather.default, aten.cat.default,
    aten.stack.default, aten.amax.default, aten.amin.default, aten.max.default, aten.min.default, aten.max.dim, aten.min.dim,
    aten.mean.default, aten.mean.dim, aten.diagonal.default, aten.index_select.default, aten.topk.default, aten.sort.default,
    aten.embedding.default, aten.unfold.default, aten.as_strided.default, aten.round.default, aten.avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
})  # fmt: skip

#: Entries of a constant that is looked into.
_LARGEST_CONSTANT = 1 << 20

_WITH_ZERO = frozenset({
    aten.constant_pad_nd.default, aten.slice_backward.default, aten.select_backward.default, aten.tril.default, aten.triu.default,
})  # fmt: skip

_SUMS = frozenset({aten.sum.default, aten.sum.dim_IntList, aten.cumsum.default})

#: Functions that only grow.
_GROWING: dict[OpOverload, Callable[[float], float]] = {
    aten.exp.default: lambda x: math.exp(min(x, 700.0)) if x < 700 else math.inf,
    aten.expm1.default: lambda x: math.expm1(min(x, 700.0)) if x < 700 else math.inf,
    aten.exp2.default: lambda x: 2.0 ** min(x, 1000.0) if x < 1000 else math.inf,
    aten.log1p.default: lambda x: math.log1p(x) if -1 < x < math.inf else (math.inf if x > 0 else -math.inf),
    aten.log.default: lambda x: math.log(x) if 0 < x < math.inf else (math.inf if x > 0 else -math.inf),
    aten.relu.default: lambda x: max(x, 0.0),
}


class Bounds:
    """Intervals of a graph's values."""

    def __init__(self, graph: fx.Graph) -> None:
        self._found: dict[fx.Node, Interval] = {}
        for node in graph.nodes:  # in order, so that no call goes deeper than one op
            self.of(node)

    def of(self, value: object) -> Interval:
        """The interval of a node or a Python number."""
        if isinstance(value, bool | int | float):
            return float(value), float(value)
        if not isinstance(value, fx.Node):
            return ANY
        if value not in self._found:
            low, high = self._find(value)
            self._found[value] = (-math.inf if math.isnan(low) else low, math.inf if math.isnan(high) else high)
        return self._found[value]

    def _find(self, node: fx.Node) -> Interval:
        target = node.target
        if node.op == "get_attr":
            return _of_constant(getattr(node.graph.owning_module, str(target), None))
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.dtype == torch.bool:
            return 0.0, 1.0
        if target in _FIXED:
            return _FIXED[target]
        if target in _HULLS or target is _GETITEM:
            return self._hull(*node.all_input_nodes)
        if target in _WITH_ZERO:
            return self._hull(node.args[0], 0.0)
        if target in _SUMS:
            return _of_sum(self.of(node.args[0]))
        if target in _GROWING:
            low, high = self.of(node.args[0])
            return _GROWING[target](low), _GROWING[target](high)
        rule = _RULES.get(getattr(target, "overloadpacket", None))
        return ANY if rule is None else rule(self, node)

    def _hull(self, *values: object) -> Interval:
        found = [self.of(value) for value in values]
        return (min(low for low, _ in found), max(high for _, high in found)) if found else ANY


def _of_constant(value: object) -> Interval:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not 0 < value.numel() <= _LARGEST_CONSTANT:
        return ANY
    with unset_fake_temporarily():  # a constant of the model is no fake tensor, also while AOTAutograd traces
        low, high = value.aminmax()
        return float(low), float(high)


def _of_sum(x: Interval) -> Interval:
    """Any number of terms: a sum keeps its sign, not its size."""
    low, high = x
    return (0.0 if low >= 0 else -math.inf), (0.0 if high <= 0 else math.inf)


def _times(x: Interval, y: Interval) -> Interval:
    corners = [0.0 if a == 0 or b == 0 else a * b for a in x for b in y]
    return min(corners), max(corners)


def _sum(b: Bounds, node: fx.Node) -> Interval:
    return _added(b, node, 1.0)


def _difference(b: Bounds, node: fx.Node) -> Interval:
    low, high = _added(b, node, -1.0)
    return low, (min(high, 0.0) if is_below_its_maximum(node) else high)


def _added(b: Bounds, node: fx.Node, sign: float) -> Interval:
    factor = sign * float(node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1))
    x, y = b.of(node.args[0]), _times(b.of(node.args[1]), (factor, factor))
    return x[0] + y[0], x[1] + y[1]


def _turned_difference(b: Bounds, node: fx.Node) -> Interval:
    x, y = b.of(node.args[1]), b.of(node.args[0])
    return x[0] - y[1], x[1] - y[0]


def _product(b: Bounds, node: fx.Node) -> Interval:
    x, y = b.of(node.args[0]), b.of(node.args[1])
    low, high = _times(x, y)
    return (max(low, 0.0), high) if node.args[0] is node.args[1] else (low, high)


def _quotient(b: Bounds, node: fx.Node) -> Interval:
    x, (low, high) = b.of(node.args[0]), b.of(node.args[1])
    if low > 0 or high < 0:
        return _times(x, (1 / high if math.isfinite(high) else 0.0, 1 / low if math.isfinite(low) else 0.0))
    if low >= 0:
        return (0.0 if x[0] >= 0 else -math.inf), (0.0 if x[1] <= 0 else math.inf)
    return ANY


def _negated(b: Bounds, node: fx.Node) -> Interval:
    low, high = b.of(node.args[0])
    return -high, -low


def _power(b: Bounds, node: fx.Node) -> Interval:
    base, exponent = node.args
    low, high = b.of(base)
    if isinstance(exponent, int | float) and float(exponent).is_integer() and exponent % 2 == 0:
        largest = max(abs(low), abs(high))
        return 0.0, (math.inf if exponent < 0 or not math.isfinite(largest) else largest**exponent)
    return _POSITIVE if low >= 0 else ANY


def _clamped(b: Bounds, node: fx.Node) -> Interval:
    low, high = b.of(node.args[0])
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    given = list(node.args[1:])
    if packet is aten.clamp_max:
        given.insert(0, None)
    for place, name in ((0, "min"), (1, "max")):
        limit = given[place] if len(given) > place else node.kwargs.get(name)
        if limit is None:
            continue
        l_low, l_high = b.of(limit)
        low, high = (max(low, l_low), max(high, l_high)) if place == 0 else (min(low, l_low), min(high, l_high))
    return low, high


def _larger(b: Bounds, node: fx.Node) -> Interval:
    (a, b_), (c, d) = b.of(node.args[0]), b.of(node.args[1])
    return max(a, c), max(b_, d)


def _smaller(b: Bounds, node: fx.Node) -> Interval:
    (a, b_), (c, d) = b.of(node.args[0]), b.of(node.args[1])
    return min(a, c), min(b_, d)


def _chosen(b: Bounds, node: fx.Node) -> Interval:
    return b._hull(node.args[1], node.args[2])


def _filled_in(b: Bounds, node: fx.Node) -> Interval:
    return b._hull(node.args[0], node.args[2])


def _from_to(b: Bounds, node: fx.Node) -> Interval:
    """linspace(start, end, ..), arange(end), arange(start, end)."""
    ends = [b.of(arg) for arg in node.args[:2]]
    ends = ends if node.target is not aten.arange.default else [(0.0, 0.0), ends[0]]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _filled(b: Bounds, node: fx.Node) -> Interval:
    return b.of(node.args[-1])


def is_below_its_maximum(node: fx.Node) -> bool:
    """x - amax(x), or x less something that is no smaller than x: the exponent of a softmax written by hand."""
    x, other = node.args[0], node.args[1]
    while isinstance(other, fx.Node) and other.target in _PASSES_ON:
        other = other.args[0]
    if not isinstance(other, fx.Node):
        return False
    if other.target in (aten.amax.default, aten.logsumexp.default):
        return other.args[0] is x
    return other.target is _GETITEM and other.args[1] == 0 and other.args[0].target is aten.max.dim and other.args[0].args[0] is x


_GETITEM = operator.getitem
_PASSES_ON = frozenset({aten.detach.default, aten.alias.default, aten.expand.default, aten.unsqueeze.default, aten.clone.default})

_RULES: dict[OpOverloadPacket, Callable[[Bounds, fx.Node], Interval]] = {
    aten.add: _sum, aten.sub: _difference, aten.rsub: _turned_difference, aten.mul: _product, aten.div: _quotient,
    aten.neg: _negated, aten.pow: _power, aten.clamp: _clamped, aten.clamp_min: _clamped, aten.clamp_max: _clamped,
    aten.hardtanh: _clamped, aten.maximum: _larger, aten.minimum: _smaller, aten.where: _chosen, aten.masked_fill: _filled_in,
    aten.full: _filled, aten.scalar_tensor: _filled, aten.linspace: _from_to, aten.arange: _from_to,
}  # fmt: skip
