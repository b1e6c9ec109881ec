"""Where a rounding to fp16 would be magnified, and how far back from there the arithmetic must be done in float32.

    softplus ─► mul ─► cumsum ─► sub ─► exp ─► matmul        an op that magnifies (cumsum) goes to the host, with it
    program    host   host      host   host   program        what it reads, back to a product's result, and what
                                                             reads its digits (sub), up to a function that forgets them
Each finding is one method, with the reason that `torchane.explain` shows. Nothing here asks whose model it is.
"""

import math
import operator

import torch
from torch import fx

from torchane.capture.graph import VIEWS
from torchane.capture.marks import is_marked
from torchane.capture.policies.precision.bounds import Bounds
from torchane.capture.policies.precision.forms import (
    LEAST_EPSILON,
    LEAST_IN_NORM,
    is_centring,
    is_square,
    leaves_only_signs,
    linear_sources,
    norm_around,
    norm_of,
    readers,
    square_sums,
    without_views,
)
from torchane.capture.policies.precision.origins import PRODUCTS, Origin, Origins
from torchane.capture.rules import RULES
from torchane.capture.rules.decompose import batch_moments

aten = torch.ops.aten

#: How the reasons of this policy begin.
PRECISION = "precision: "

#: Up to it an argument's rounding, 2^-12 of it, moves a sine by no more than sines are rounded themselves.
_LARGEST_ANGLE = 4.0
#: e^8 = 2981 is far from 65504, and the argument's rounding moves it by 2^-9 at most, as a bf16 product's does.
_LARGEST_EXPONENT = 8.0

#: A factor from here on takes numbers of a hundred out of fp16; one below takes numbers of 1 to where fp16 has few digits.
_LARGE_FACTOR, _SMALL_FACTOR = 2.0**8, 2.0**-10
#: A term from here on leaves a number of 1 with six digits or less. Those of masks are larger.
_FAR_TERM, _MASK_TERM = 32.0, 1e4

#: How the reasons of products begin; their gradients follow them.
DISTANCE = "a product that is taken from sums of squares"
FEW_DIGITS = "it reads numbers that have few digits in fp16"

_ANGLES = frozenset({aten.sin, aten.cos, aten.tan})
_EXPONENTIALS = frozenset({aten.exp, aten.exp2, aten.expm1, aten.sinh, aten.cosh})
#: Functions with a pole or a vertical tangent: a rounding beside it is magnified without bound.
_POLES = frozenset({
    aten.log, aten.log2, aten.log10, aten.log1p, aten.logit, aten.erfinv, aten.special_erfinv, aten.acos, aten.asin, aten.acosh,
    aten.atanh, aten.lgamma, aten.digamma, aten.polygamma, aten.special_ndtri, aten.xlogy, aten.special_entr,
})  # fmt: skip
_RUNNING = frozenset({aten.cumsum, aten.cumprod, aten.logcumsumexp})
_PRODUCTS_OF_MANY = frozenset({aten.prod, aten.renorm, aten.dist, aten._cdist_forward, aten._pdist_forward, aten.linalg_det, aten._linalg_det, aten._linalg_slogdet})
#: What chooses by comparing: an index flips where two values lie within one rounding.
_CHOICES = frozenset({
    aten.topk, aten.sort, aten.argsort, aten.argmax, aten.argmin, aten.round, aten.floor, aten.ceil, aten.trunc, aten.fmod,
    aten.remainder, aten.searchsorted, aten.bucketize, aten.multinomial, aten.histc, aten.kthvalue, aten.median,
})  # fmt: skip
#: Near their ends their last digits say how far the end is.
_SATURATE = frozenset({aten.sigmoid, aten.tanh, aten.hardsigmoid, aten.erf, aten.erfc})
_LINEAR = frozenset({aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.neg})
#: What moves a rounding along and magnifies none: free to go to the host where only the host reads it.
_PLAIN = _LINEAR | {aten.abs, aten.minimum, aten.maximum, aten.clamp, aten.clamp_min, aten.clamp_max, aten.where}
#: Ops that hand digits on: what they read must have them, and so must what reads them.
_HAND_ON = _LINEAR | {
    aten.where, aten.masked_fill, aten.cat, aten.stack, aten.slice, aten.select, aten.flip, aten.roll, aten.tril, aten.triu, aten.sum,
    aten.mean, aten.clamp, aten.clamp_min, aten.clamp_max, aten.maximum, aten.minimum, aten.constant_pad_nd, aten.abs, aten.repeat,
    aten.index, aten.gather, aten.amax, aten.amin, aten.split, aten.split_with_sizes, aten.unbind, aten.diagonal, aten._to_copy,
}  # fmt: skip
#: What an author's own cast to float32 sends to the host: the rest (products, sums of two, functions with a slope of about 1) rounds
#: its result and no more.
_AS_ASKED = frozenset({
    aten.sub, aten.rsub, aten.div, aten.reciprocal, aten.sqrt, aten.rsqrt, aten.pow, aten.square, aten.sum, aten.mean, aten.var,
    aten.var_mean, aten.std, aten.exp, aten.linalg_vector_norm, aten.logsumexp, aten.addcdiv, aten.addcmul,
})  # fmt: skip
_MOMENTS = frozenset({aten.sum, aten.mean, aten.var, aten.var_mean, aten.std})
_SUMS_OF_SQUARES = frozenset({
    aten.sum, aten.mean, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.pow, aten.square, aten.mul,
})  # fmt: skip
_SOFTMAXES = frozenset({aten._softmax, aten._safe_softmax})
#: Where a walk back ends: programs compute these safely, whatever reads them.
_SAFE = frozenset({
    aten.native_layer_norm, aten._fused_rms_norm, aten.native_group_norm, aten.max_pool2d_with_indices, aten.avg_pool2d,
    aten._adaptive_avg_pool2d, aten.upsample_nearest2d, aten.upsample_bilinear2d,
})  # fmt: skip
_DIVIDES = frozenset({aten.reciprocal, aten.rsqrt, aten.sqrt, aten.log, aten.pow})
#: Reductions and powers that leave fp16's range first.
_WIDE_RESULTS = frozenset({aten.pow, aten.square, aten.sum, aten.reciprocal, aten.rsqrt, aten.var, aten.std})

_WHOLE_EXPONENTS = (0, 0.5, 1, 1.5, 2, 3, -0.5, -1, -1.5)


def packet_of(node: fx.Node) -> object:
    return getattr(node.target, "overloadpacket", None)


class Demands:
    """`reasons`: the nodes of one forward graph that the host computes for precision's sake."""

    def __init__(self, graph: fx.Graph, origins: Origins, given: frozenset[fx.Node]):
        self.graph = graph
        self.origins = origins
        self.given = given
        self.bounds = Bounds(graph)
        self.reasons: dict[fx.Node, str] = {}
        self.digits: dict[fx.Node, str] = {}  # values whose last digits count, and why
        self.tiny: set[fx.Node] = set()  # values that an epsilon below fp16 guards
        self.faint: set[fx.Node] = set()  # values that a constant made small, and that are read as they are
        self.squares: set[fx.Node] = set()  # sums of squares that are no norm, and what is made of them
        self.norms = self._norms()

    def find(self) -> dict[fx.Node, str]:
        for node in self.graph.nodes:
            if node.op == "call_function" and self.origins.of[node] is not Origin.STATIC:
                self._raw(node)
                self._is_over_few(node)
                self._magnifies(node)
                self._moves_far(node)
                self._is_distance(node)
                self._reads_digits(node)
            if node.op == "call_function":
                self._epsilon(node)
        self._ends()
        return self.reasons

    def _norms(self) -> frozenset[fx.Node]:
        found: set[fx.Node] = set()
        for square, total in square_sums(self.graph):
            norm = norm_of(square, total)
            epsilons = [epsilon for node in norm if (epsilon := _epsilon_of(node)) is not None]
            if leaves_only_signs(total) is None and not norm & self.given and min(epsilons, default=1.0) >= LEAST_IN_NORM:
                found |= norm
        return frozenset(found)

    # ---- what is found

    def _raw(self, node: fx.Node) -> None:
        if self.origins.of[node] is Origin.RAW:
            self._send(node, "it computes with the caller's own numbers, which may be larger or have more digits than fp16")

    def _is_over_few(self, node: fx.Node) -> None:
        """A norm over two values: what reads its moments is part of it."""
        if (values := leaves_only_signs(node)) is not None:
            why = f"it is part of a norm over {values}, which leaves signs, and of its gradient what fp16 rounds away"
            for part in (node, *(norm_around(node) if packet_of(node) in _MOMENTS else ())):
                self._demand(part, why)

    def _magnifies(self, node: fx.Node) -> None:
        packet = packet_of(node)
        first = next(iter(node.all_input_nodes), None)
        low, high = self.bounds.of(first) if first is not None else (-math.inf, math.inf)
        if packet in _ANGLES and max(-low, high) > _LARGEST_ANGLE:
            self._send(node, "its angle may be many turns, whose rounding in fp16 is a large part of one", pull=True)
        elif packet in _EXPONENTIALS or node.target is aten.pow.Scalar:
            size = max(-low, high) if packet in (aten.sinh, aten.cosh) else high
            if size > _LARGEST_EXPONENT:
                why = f"its argument may exceed {_LARGEST_EXPONENT:g}, and e^11.1 is above 65504"
                self._send(node, why, pull=True)
                self.digits[node] = f"an exponential that may leave fp16's range is read: {why}"
        elif packet in _POLES:
            self._send(node, "it magnifies what fp16 rounds near its pole", pull=True, small=True)
        elif packet in _RUNNING:
            why = "differences of running sums are smaller than the sums' rounding in fp16"
            self._send(node, why, pull=True)
            self.digits[node] = why
        elif packet is aten.logsumexp:
            why = "it is a logarithm of a sum, whose rounding an exponential makes a part of all that it is taken from"
            self._send(node, why, pull=True)
            self.digits[node] = why
        elif packet in _PRODUCTS_OF_MANY:
            self._send(node, "a product of many numbers leaves fp16's range", pull=True)
        elif packet in _CHOICES:
            self._pull(node, "what reads it chooses by comparing", small=True)
        elif node.target is aten.pow.Tensor_Scalar and float(node.args[1]) not in _WHOLE_EXPONENTS:
            self._send(node, f"the power {node.args[1]:g} magnifies roundings and leaves fp16's range", pull=True)
        elif node.target is aten._to_copy.default and _comes_of_integers(node):
            self.digits[node] = "whole numbers may be larger than 65504, or than the 2048 up to which fp16 holds each"
        elif is_marked(node) and packet in _AS_ASKED and node not in self.norms and not is_centring(node):
            self._send(node, "the model casts what it reads to float32", pull=True)
        elif self._is_plain_sum_of_squares(node):
            why = "squares leave fp16's range from 256 on and below 0.0003, and this sum of them is no norm"
            self._send(node, why, pull=True)
            self.digits[node] = why
            self.squares.add(node)
            for base in without_views(node.args[0]).all_input_nodes:  # E[x^2] - E[x]^2 is that of the x that is centred
                for user in readers(base):
                    if packet_of(user) in (aten.sub, aten.rsub):
                        self._send(user, why)

    def _is_plain_sum_of_squares(self, node: fx.Node) -> bool:
        packet = packet_of(node)
        if packet not in _SUMS_OF_SQUARES or node in self.norms or not isinstance(node.args[0], fx.Node):
            return False
        square = node if is_square(node) else without_views(node.args[0])
        if square is node:  # the square of a norm is a sum of squares
            return packet_of(without_views(node.args[0])) is aten.linalg_vector_norm
        low, high = self.bounds.of(square)
        return is_square(square) and high > 64

    def _moves_far(self, node: fx.Node) -> None:
        """A constant that takes values to where fp16 holds few of their digits, or ends."""
        packet, origin = packet_of(node), self.origins.of[node]
        if packet not in (aten.mul, aten.div, aten.add, aten.sub, aten.rsub) or node in self.norms or len(node.args) < 2:
            return
        least, most = self._size_of_constant(node)
        if packet in (aten.add, aten.sub, aten.rsub):
            if _FAR_TERM <= least and most < _MASK_TERM and origin is not Origin.RAW:
                self._demand(node, f"its term is {most:g}, and fp16 has few digits left next to it")
        elif origin is Origin.ROUNDED and packet is aten.div and least > 0:
            self._scales(node, 1 / most, 1 / least)
        elif origin is Origin.ROUNDED and packet is aten.mul and most > 0:
            self._scales(node, least, most)

    def _scales(self, node: fx.Node, least: float, most: float) -> None:
        if _LARGE_FACTOR <= most < math.inf and least > 0:
            self._demand(node, f"its factor is {most:g}, and fp16 ends at 65504")
        elif 0 < most < _SMALL_FACTOR and not any(_origin_of_view(source) in self.digits for source in node.all_input_nodes):
            self._demand(node, f"its factor is {most:g}, and fp16 has few digits below 6e-5")
            self.faint.add(node)

    def _demand(self, node: fx.Node, why: str) -> None:
        self._send(node, why, pull=True)
        self.digits[node] = why

    def _size_of_constant(self, node: fx.Node) -> tuple[float, float]:
        """Between which two magnitudes the constant operand of an op lies; 0 and inf where it has none, or one of both signs."""
        for arg in node.args[:2]:
            if isinstance(arg, bool) or (isinstance(arg, fx.Node) and self.origins.of[arg] is not Origin.STATIC):
                continue
            low, high = self.bounds.of(arg)
            if (low > 0 or high < 0) and math.isfinite(low) and math.isfinite(high):
                return min(abs(low), abs(high)), max(abs(low), abs(high))
        return 0.0, math.inf

    def _is_distance(self, node: fx.Node) -> None:
        """|a|^2 + |b|^2 - 2ab: the product is as large as the squares, and its rounding as large as a short distance."""
        if packet_of(node) not in (aten.add, aten.sub, aten.rsub, aten.addmm, aten.baddbmm):
            return
        if not any(_origin_of_view(source) in self.squares for source in node.all_input_nodes):
            return
        self.squares.add(node)
        for source in (node, *linear_sources(node)):
            if source.target in PRODUCTS and self.origins.of[source] is Origin.ROUNDED:
                self.reasons[source] = f"{PRECISION}{DISTANCE}"
                self._pull(source, DISTANCE)

    def _reads_digits(self, node: fx.Node) -> None:
        """An op between a value whose last digits count and the function that forgets them."""
        found = [source for source in map(_origin_of_view, node.all_input_nodes) if source in self.digits]
        if node.target in PRODUCTS and any(source in self.faint for source in found):
            self.reasons[node] = f"{PRECISION}{FEW_DIGITS}: {self.digits[found[0]]}"
            return
        if not found or node.target in PRODUCTS or node.target in VIEWS or node in self.digits:
            if found and (node.target in VIEWS or node.target is operator.getitem):
                self.digits[node] = self.digits[found[0]]
            return
        why = self.digits[found[0]]
        packet = packet_of(node)
        if packet in _HAND_ON:
            if packet is aten.add and self._joins_a_product(node):
                return
            self._demand(node, why)
            if any(source in self.faint for source in found) and not self._is_scaled_back(node, found):
                self.faint.add(node)
        elif packet not in _SAFE or any(source in self.faint for source in found):
            self._send(node, why, pull=True)

    def _is_scaled_back(self, node: fx.Node, found: list[fx.Node]) -> bool:
        """Multiplied or divided by what the host made of small numbers: their norm, most often."""
        others = [source for source in map(_origin_of_view, node.all_input_nodes) if source not in found]
        return packet_of(node) in (aten.mul, aten.div) and any(source in self.reasons for source in others)

    def _joins_a_product(self, node: fx.Node) -> bool:
        """A sum with a value whose own rounding is as large: a residual stream."""
        sources = [_origin_of_view(source) for source in node.all_input_nodes]
        return any(source not in self.digits and self.origins.of[source] is Origin.ROUNDED for source in sources)

    def _epsilon(self, node: fx.Node) -> None:
        """x / (norm + 1e-12), x / norm.clamp(min=1e-9): guarded by less than fp16 can tell from nothing."""
        epsilon = _epsilon_of(node)
        if epsilon is not None and epsilon < LEAST_EPSILON and node not in self.norms:
            self._send(node, f"its epsilon {epsilon:g} is nothing in fp16", pull=True, small=True)
            self.tiny.add(node)
        packet = packet_of(node)
        divides = packet is aten.div and isinstance(node.args[1], fx.Node) and self._is_tiny(node.args[1])
        if divides or (packet is aten.mul and any(map(self._is_tiny, node.all_input_nodes))):
            self._send(node, "what it divides by is guarded by an epsilon that is nothing in fp16", pull=True, small=True)
        elif packet in _DIVIDES and self._is_tiny(node.args[0]):
            self._send(node, "what it divides by is guarded by an epsilon that is nothing in fp16")
            self.tiny.add(node)

    def _is_tiny(self, value: object) -> bool:
        return isinstance(value, fx.Node) and without_views(value) in self.tiny

    def _ends(self) -> None:
        """Losses, and what only the host or the caller reads: to compute it there costs no dispatch."""
        tail: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            if node.op != "call_function" or node.target in PRODUCTS:
                continue
            users = readers(node)
            is_loss = _is_scalar(node) if node in self.given else bool(users)
            if is_loss and all(user in tail for user in users) and self._is_free(node):
                tail.add(node)
                self._send(node, "it is part of a loss, which autocast computes in float32")
            elif packet_of(node) in _WIDE_RESULTS and node not in self.norms and node in self.origins.wide:
                if (node in self.given or users) and self._only_host_reads(node):
                    self._send(node, "its result may leave fp16's range, and only the host reads it", pull=True)

    def _is_free(self, node: fx.Node) -> bool:
        is_mask = isinstance(node.meta.get("val"), torch.Tensor) and node.meta["val"].dtype == torch.bool
        is_wide = node in self.origins.wide or (is_mask and any(source in self.origins.wide for source in node.all_input_nodes))
        return is_wide and packet_of(node) not in _SAFE | _SOFTMAXES and node not in self.norms

    def _runs_on_host(self, node: fx.Node) -> bool:
        if node.target in VIEWS or node.target is operator.getitem:
            return all(map(self._runs_on_host, readers(node)))
        return node in self.reasons or node.target not in RULES

    # ---- what follows

    def _send(self, node: fx.Node, why: str, pull: bool = False, small: bool = False) -> None:
        if self.origins.of[node] is not Origin.STATIC and node.target not in PRODUCTS | VIEWS:
            self.reasons.setdefault(node, PRECISION + why)
        if pull:
            self._pull(node, why, small)

    def _pull(self, node: fx.Node, why: str, small: bool = False) -> None:
        """Sends to the host what a node reads, back to results of products. small: through a softmax too, whose last digits and
        smallest numbers count."""
        pending = list(node.all_input_nodes)
        while pending:
            source = _origin_of_view(pending.pop())
            if source.op != "call_function" or source in self.reasons or not self._follows(source, small):
                continue
            self.reasons[source] = f"{PRECISION}it is read where digits count: {why}"
            pending.extend(source.all_input_nodes)

    def _follows(self, node: fx.Node, small: bool) -> bool:
        packet = packet_of(node)
        if node.target not in RULES or node.target in PRODUCTS or node.target is batch_moments or packet in _SAFE:
            return False
        if self.origins.of[node] is Origin.STATIC or (packet in _SOFTMAXES and not small):
            return False
        if node in self.norms and not small:
            return False
        if node not in self.origins.wide:  # autocast rounds it as well, but here it costs nothing not to
            return packet in (_PLAIN | _SATURATE if small else _PLAIN) and self._only_host_reads(node)
        rounded = [source for source in node.all_input_nodes if self.origins.of[source] is Origin.ROUNDED]
        is_sum = packet is aten.add and len(rounded) > 1 and not all(_origin_of_view(source) in self.digits for source in rounded)
        return not is_sum or self._only_host_reads(node)

    def _only_host_reads(self, node: fx.Node) -> bool:
        return all(map(self._runs_on_host, readers(node)))


def _origin_of_view(node: fx.Node) -> fx.Node:
    while (node.target in VIEWS or node.target is operator.getitem) and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node


def _comes_of_integers(node: fx.Node) -> bool:
    before, after = node.args[0].meta["val"], node.meta["val"]
    return after.is_floating_point() and before.dtype in (torch.int16, torch.int32, torch.int64)


def _is_scalar(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() == 1


def _epsilon_of(node: fx.Node) -> float | None:
    """The number, near nothing, that an op adds or keeps its operand above."""
    packet = packet_of(node)
    if packet not in (aten.add, aten.clamp, aten.clamp_min, aten.maximum) or len(node.args) + len(node.kwargs) < 2:
        return None
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    if isinstance(given, fx.Node):
        given = given.args[1] if given.target is aten.full.default else None
    return float(given) if isinstance(given, int | float) and given > 0 else None
