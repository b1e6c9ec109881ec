"""Which values of a graph may be infinite or NaN where the model does not mind: in the branch that a selection leaves out.

    exp(x)  x above 11        1 / x, log(x), x ** -1   x near 0       log(x), sqrt(x)   x below 0      x * x    x above 255
    data    a NaN that marks what is missing, 1e20 that marks what lies outside
Every other op is taken to stay in fp16's range, as everywhere in this package: where it does not, the step ends in an error
that says so. So sums, products of two values and matrix products start nothing, and a matrix product ends it: its result is
a number again. What starts something is a function with a pole, one that grows like exp, or a square, unless `bounds` shows
that its operand keeps away from the place. A square root counts for its gradient, which has a pole.
"""

import math
import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import fx

from torchane.abi.numbers import FP16_MAX, FP16_SMALLEST
from torchane.capture.graph import CONTRACTIONS
from torchane.capture.policies.precision.bounds import ANY, Bounds

aten = torch.ops.aten


@dataclass(frozen=True)
class Beyond:
    """inf, nan: the value may be that. made: by an op of the graph, not only because the data has it."""

    inf: bool = False
    nan: bool = False
    made: bool = False

    def __bool__(self) -> bool:
        return self.inf or self.nan

    def __or__(self, other: "Beyond") -> "Beyond":
        return Beyond(self.inf or other.inf, self.nan or other.nan, self.made or other.made)


_NO = Beyond()
_INF = Beyond(inf=True, made=True)
_BOTH = Beyond(inf=True, nan=True, made=True)
_DATA = Beyond(inf=True, nan=True)

#: e^11 is the last power of e below fp16's 65504.
_LARGEST_EXPONENT = {aten.exp: 11.0, aten.expm1: 11.0, aten.exp2: 15.9, aten.sinh: 11.0, aten.cosh: 11.0}
#: A divisor of at least this leaves an ordinary number in range.
_LEAST_DIVISOR = 2.0**-12

_SATURATE = frozenset({aten.sigmoid, aten.tanh, aten.erf, aten.erfc, aten.hardsigmoid, aten.hardtanh, aten.atan, aten.sin, aten.cos, aten.sign, aten.sgn})
_LOGARITHMS = frozenset({aten.log, aten.log2, aten.log10})
#: Poles or ends of a domain of their own, whose gradients have them too.
_POLES = frozenset({
    aten.tan, aten.acos, aten.asin, aten.atanh, aten.acosh, aten.erfinv, aten.lgamma, aten.digamma, aten.polygamma, aten.xlogy,
    aten.logit, aten.special_entr, aten.special_xlog1py, aten.special_log_ndtr, aten.special_ndtri, aten.special_zeta, aten.igamma, aten.igammac,
    aten.mvlgamma, aten.atan2, aten.fmod, aten.remainder, aten.prod, aten.cumprod, aten.logit_backward, aten.norm, aten.i0, aten.special_erfcx,
})  # fmt: skip
_NORMALISE = frozenset({aten._softmax, aten._safe_softmax, aten._log_softmax, aten.native_layer_norm, aten._fused_rms_norm, aten.native_group_norm})
_SUMS = frozenset({aten.sum, aten.mean, aten.cumsum, aten.var, aten.std, aten.var_mean, aten.linalg_vector_norm})
_CHOOSE = frozenset({aten.where, aten.masked_fill})
_FILL = frozenset({aten.full, aten.scalar_tensor, aten.full_like, aten.new_full, aten.fill})
#: What says the same everywhere, whatever it is given.
FILL = _FILL | {aten.ones_like, aten.zeros_like, aten.ones, aten.zeros, aten.new_ones, aten.new_zeros}


def packet_of(node: fx.Node) -> object:
    return getattr(node.target, "overloadpacket", None)


class NonFinite:
    """`of(node)`, for every node of a graph. data: placeholders of the caller's numbers; static: those of buffers and masks,
    which are taken for what they are and stay with what comes of them alone."""

    def __init__(self, graph: fx.Graph, data: Collection[fx.Node], static: Collection[fx.Node]) -> None:
        self.bounds = Bounds(graph)
        self._found: dict[fx.Node, Beyond] = {}
        self._static: set[fx.Node] = set()
        for node in graph.nodes:
            if node.op == "placeholder":
                self._found[node] = _DATA if node in data else _NO
                self._static |= {node} & set(static)
            elif node.op == "get_attr":
                self._found[node] = _of_constant(getattr(graph.owning_module, str(node.target), None))
                self._static.add(node)
            elif node.op != "output":
                if node.all_input_nodes and self._static.issuperset(node.all_input_nodes):
                    self._static.add(node)
                starts_nothing = node in self._static and not self._of_operands(node)
                self._found[node] = _NO if starts_nothing else self._find(node)

    def of(self, value: object) -> Beyond:
        if isinstance(value, fx.Node):
            return self._found[value]
        return Beyond(math.isinf(value), math.isnan(value), True) if isinstance(value, float) else _NO

    def is_static(self, node: fx.Node) -> bool:
        return node in self._static

    def _of_operands(self, node: fx.Node) -> Beyond:
        found = _NO
        for source in node.all_input_nodes:
            found = found | self._found[source]
        return found

    def _find(self, node: fx.Node) -> Beyond:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and not value.is_floating_point():
            return _NO
        if node.target in CONTRACTIONS:
            return _NO
        packet = packet_of(node)
        operands = self._of_operands(node)
        if node.target is operator.getitem:
            return operands
        if packet in _FILL:
            return self.of(float(node.args[-1]) if isinstance(node.args[-1], int | float) else node.args[-1])
        if packet in _CHOOSE:
            return self._chosen(node)
        if packet in _SATURATE:
            return Beyond(nan=operands.nan, made=operands.made)
        if packet in _POLES:
            return _BOTH
        if packet in _NORMALISE:
            return Beyond(nan=bool(operands), made=operands.made)
        rule = _RULES.get(packet)
        return operands if rule is None else rule(self, node, operands)

    def _chosen(self, node: fx.Node) -> Beyond:
        """A selection gives the numbers that it was made for, and the infinities that it is given as constants; those that
        mask scores are stood in for by numbers."""
        found = _NO
        for branch in node.args[1:] if packet_of(node) is aten.where else node.args[2:]:
            low, high = self.bounds.of(branch)
            if isinstance(branch, fx.Node) and packet_of(branch) in _FILL and not (low == high == -math.inf) or isinstance(branch, float) and branch != -math.inf:
                found = found | self.of(branch)
        return found


def _of_constant(value: object) -> Beyond:
    """What a tensor of the model holds. -inf masks scores, and programs have a number in its place."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return _NO
    return Beyond(bool((value == math.inf).any()), bool(value.isnan().any()), True)


Rule = Callable[[NonFinite, fx.Node, Beyond], Beyond]


def _grows(n: NonFinite, node: fx.Node, x: Beyond) -> Beyond:
    low, high = n.bounds.of(node.args[0])
    packet, limit = packet_of(node), _LARGEST_EXPONENT[packet_of(node)]
    largest = max(abs(low), abs(high)) if packet in (aten.sinh, aten.cosh) else high
    return Beyond(largest > limit, x.nan, x.made or largest > limit)


def _logarithm(n: NonFinite, node: fx.Node, x: Beyond) -> Beyond:
    low = n.bounds.of(node.args[0])[0] + (1.0 if packet_of(node) is aten.log1p else 0.0)
    return x | (_BOTH if low < 0 else _INF if low < FP16_SMALLEST else _NO)


def _root(n: NonFinite, node: fx.Node, x: Beyond) -> Beyond:
    return _logarithm(n, node, x)


def _reciprocal_root(n: NonFinite, node: fx.Node, x: Beyond) -> Beyond:
    low, _ = n.bounds.of(node.args[0])
    if low >= _LEAST_DIVISOR**2:
        return Beyond(nan=x.nan, made=x.made)  # of an infinity it is 0
    return x | (_BOTH if low < 0 else _INF)


def _quotient(n: NonFinite, node: fx.Node, x: Beyond) -> Beyond:
    first, second = node.args[0], node.args[1]
    low, high = n.bounds.of(second)
    is_far = low >= _LEAST_DIVISOR or high <= -_LEAST_DIVISOR
    above, below = n.of(first), n.of(second)
    if not is_far:
        return x | _BOTH
    return Beyond(above.inf, above.nan or below.nan or (above.inf and below.inf), x.made)


def _reciprocal(n: NonFinite, node: fx.Node, x: Beyond) -> Beyond:
    low, high = n.bounds.of(node.args[0])
    return Beyond(nan=x.nan, made=x.made) if low >= _LEAST_DIVISOR or high <= -_LEAST_DIVISOR else x | _BOTH


def _power(n: NonFinite, node: fx.Node, x: Beyond) -> Beyond:
    base, exponent = node.args[0], node.args[1]
    if not isinstance(exponent, int | float):
        return _BOTH
    low, high = n.bounds.of(base)
    if exponent < 0:
        return _reciprocal(n, node, x)
    is_whole = float(exponent).is_integer()
    pole = _NO if is_whole else _BOTH if low < 0 else _INF if exponent < 1 and low < FP16_SMALLEST else _NO
    largest = max(abs(low), abs(high))
    grows = exponent > 1 and not (math.isfinite(largest) and largest <= FP16_MAX ** (1 / exponent))
    return x | pole | (_INF if grows else _NO)


def _square(n: NonFinite, node: fx.Node, x: Beyond) -> Beyond:
    low, high = n.bounds.of(node.args[0])
    return x | (_NO if max(abs(low), abs(high)) <= math.sqrt(FP16_MAX) else _INF)


def _product(n: NonFinite, node: fx.Node, x: Beyond) -> Beyond:
    if node.args[0] is node.args[1]:
        return _square(n, node, x)
    return Beyond(x.inf, x.nan or x.inf, x.made)


def _sum(n: NonFinite, node: fx.Node, x: Beyond) -> Beyond:
    both = n.of(node.args[0]).inf and n.of(node.args[1]).inf
    return Beyond(x.inf, x.nan or both, x.made)


def _of_many(n: NonFinite, node: fx.Node, x: Beyond) -> Beyond:
    low, _ = n.bounds.of(node.args[0])
    return Beyond(x.inf, x.nan or (x.inf and low < 0), x.made)


def _clamped(n: NonFinite, node: fx.Node, x: Beyond) -> Beyond:
    low, high = n.bounds.of(node)
    return Beyond(x.inf and not (math.isfinite(low) and math.isfinite(high)), x.nan, x.made)


def _shrinks(n: NonFinite, node: fx.Node, x: Beyond) -> Beyond:
    """Its result lies between fixed numbers."""
    return Beyond(x.inf and n.bounds.of(node) == ANY, x.nan, x.made)


_RULES: dict[object, Rule] = {
    **dict.fromkeys(_LARGEST_EXPONENT, _grows), **dict.fromkeys(_LOGARITHMS | {aten.log1p}, _logarithm), aten.sqrt: _root,
    aten.rsqrt: _reciprocal_root, aten.div: _quotient, aten.reciprocal: _reciprocal, aten.pow: _power, aten.square: _square,
    aten.mul: _product, aten.add: _sum, aten.sub: _sum, aten.rsub: _sum, aten.clamp: _clamped, aten.clamp_min: _clamped,
    aten.clamp_max: _clamped, **dict.fromkeys(_SUMS, _of_many), aten.softplus: _shrinks,
}  # fmt: skip
