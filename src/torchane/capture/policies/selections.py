"""Selections whose branches may hold an infinity or a NaN: PyTorch selects, programs multiply by zeros and ones.

    where(x > 0, 1 / x, 0)      a program computes (1 / x) * m + 0 * (1 - m), which is NaN where x is 0: 0 times infinity
No chip is sure to take MIL's `select` (chips/portable.toml). So a selection goes to the host when a branch of it may be
infinite or NaN (`nonfinite`), and with it the arithmetic from there back to where that came from: in fp32 exp(20) is a number,
and the zero gradient of a branch that was not taken stays zero times it. In a backward that holds for gradients, too
(log(clamp(x, eps)) divides by what the clamp's gradient then leaves out); what its forward sent to the host, its gradients follow (follow.py).
Selections, by name or not: where, masked_fill, clamp, relu and their gradients, comparisons, maxima, triangles, products with
a mask of bools. A condition that asks for NaN or infinity is reason enough. Causal masks, padding, dropout and ReLU have
finite branches, matrix products and sums of them, and stay in programs.
"""

import math
import operator
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import fx

from torchane.capture.graph import CONTRACTIONS, VIEWS
from torchane.capture.policies.facts import Facts
from torchane.capture.policies.nonfinite import NonFinite, packet_of

aten = torch.ops.aten

#: How the reasons of this policy begin.
SELECTION = "selection: "
_BRANCH = SELECTION + "a branch that it does not take may be infinite or NaN, and a program would multiply that by 0"
_ASKED = SELECTION + "it chooses where a value is infinite or NaN, and a program would multiply that by 0"
_PART = SELECTION + "a branch that is not taken descends from it, and may be infinite or NaN in fp16"

_COMPARE = frozenset({aten.gt, aten.lt, aten.ge, aten.le, aten.eq, aten.ne})
#: The first operand of each is what they select from or bound.
_FIRST = frozenset({
    aten.threshold_backward, aten.hardtanh_backward, aten.hardsigmoid_backward, aten.hardswish_backward, aten.leaky_relu_backward,
    aten.elu_backward, aten.tril, aten.triu, aten.max_pool2d_with_indices_backward,
})  # fmt: skip
#: NaN and infinities of the data pass through these as they do in PyTorch; what the graph makes of itself may not.
_BOUND = frozenset({
    aten.relu, aten.hardtanh, aten.hardswish, aten.leaky_relu, aten.elu, aten.threshold, aten.clamp, aten.clamp_min, aten.clamp_max,
    aten.maximum, aten.minimum, aten.amax, aten.amin, aten.max, aten.min, aten.sign, aten.sgn, aten.abs,
})  # fmt: skip
_ASK = frozenset({aten.isnan, aten.isinf, aten.isfinite, aten.isposinf, aten.isneginf})
#: Selections whose condition is their own.
_REPLACE = frozenset({aten.nan_to_num, aten.nansum, aten.nanmedian})
_RANDOM = frozenset({aten.bernoulli, aten.rand, aten.rand_like, aten.native_dropout})


def selections(graph: fx.Graph, facts: Facts) -> Mapping[fx.Node, str]:
    """The policy."""
    return _Search(graph, facts).find()


def selects(node: fx.Node) -> bool:
    """It chooses between two values, so that the numbers of a mask may be among its results."""
    return packet_of(node) in (aten.where, aten.masked_fill)


class _Search:
    def __init__(self, graph: fx.Graph, facts: Facts) -> None:
        self.graph = graph
        self.facts = facts
        self.beyond = NonFinite(graph, facts.data, facts.static)
        self.asks = self._that_ask()
        self.reasons: dict[fx.Node, str] = {}

    def find(self) -> dict[fx.Node, str]:
        for node in self.graph.nodes:
            if node.op != "call_function" or self.beyond.is_static(node):
                continue
            branches = [branch for branch in self._branches(node) if isinstance(branch, fx.Node)]
            if (selects(node) and _condition(node) in self.asks) or packet_of(node) in _REPLACE:
                self._send(node, _ASKED, branches)
            elif self._is_poisoned(node):
                self._send(node, _BRANCH, branches)
        self._keep_together()
        return self.reasons

    def _that_ask(self) -> set[fx.Node]:
        """Conditions that ask of a value of the graph whether it is infinite or NaN."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            packet = packet_of(node)
            if node.op != "call_function" or self.beyond.is_static(node):
                continue
            compares = packet in _COMPARE and (node.args[0] is node.args[1] or not math.isfinite(_number_in(node.args[1])))
            passes = _is_bool(node) and any(source in found for source in node.all_input_nodes)
            if packet in _ASK or compares or passes:
                found.add(node)
        return found

    # ---- what selects, and from what

    def _branches(self, node: fx.Node) -> Iterable[object]:
        packet = packet_of(node)
        if packet is aten.where:
            return node.args[1:]
        if packet is aten.masked_fill:
            return (node.args[0], node.args[2])
        if packet in _FIRST or packet in _REPLACE:
            return node.args[:1]
        if packet in _BOUND or packet in _COMPARE:
            return [arg for arg in node.args if isinstance(arg, fx.Node)]
        if packet is aten.mul:
            return self._masked_by_product(node)
        return ()

    def _masked_by_product(self, node: fx.Node) -> Iterator[object]:
        for mask, other in (node.args, node.args[::-1]):
            if self._is_mask(mask):
                yield other

    def _is_mask(self, value: object) -> bool:
        """Bools, or the numbers that stand for them. A dropout's are none: no branch is chosen by them. A backward has them
        from its forward, and cannot tell."""
        while isinstance(value, fx.Node) and (value.target in VIEWS or packet_of(value) is aten._to_copy):
            value = value.args[0]
        if not isinstance(value, fx.Node) or not _is_bool(value) or packet_of(value) in _RANDOM:
            return False
        return not (value.op == "placeholder" and self.facts.tangents)

    def _is_poisoned(self, node: fx.Node) -> bool:
        """A branch may be infinite or NaN. Numbers that mask scores are stood in for by others, +inf and NaN are not."""
        is_bound = packet_of(node) in _BOUND
        for branch in self._branches(node):
            found = self.beyond.of(branch)
            low, high = self.beyond.bounds.of(branch)
            is_mask = low == high == -math.inf
            if found and not is_mask and (found.made or not is_bound):
                return True
        return False

    # ---- what goes along

    def _send(self, node: fx.Node, why: str, branches: Iterable[fx.Node]) -> None:
        self._take(node, why)
        pending = [branch for branch in branches if self.beyond.of(branch)]
        seen = set(pending)
        while pending:
            source = pending.pop()
            if source.op != "call_function":
                continue
            self._take(source, _PART)
            for other in source.all_input_nodes:
                if other not in seen and self.beyond.of(other):
                    seen.add(other)
                    pending.append(other)

    def _take(self, node: fx.Node, why: str) -> None:
        if node.target not in VIEWS and node.target not in CONTRACTIONS and node.target is not operator.getitem:
            self.reasons.setdefault(node, why)

    def _keep_together(self) -> None:
        """What the host can compute from its own values for an op that it runs, it does: a comparison and the branch that it
        guards must see the same number, and fp16 rounds 1e-8 to 0."""
        constant: set[fx.Node] = set()
        on_host = {node for node in self.graph.nodes if node.op == "placeholder" and node not in self.facts.tangents}
        for node in self.graph.nodes:
            if node.op != "call_function":
                continue
            if constant.issuperset(node.all_input_nodes):
                constant.add(node)
            is_there = self.beyond.is_static(node) or node in self.reasons
            if is_there or (node.target not in CONTRACTIONS and on_host.issuperset(node.all_input_nodes)):
                on_host.add(node)
        for node in reversed(list(self.graph.nodes)):
            is_free = node in on_host and node.op == "call_function" and node not in constant and not self.beyond.is_static(node)
            if is_free and _is_read_by(node, self.reasons):
                self._take(node, _PART)


def _is_read_by(node: fx.Node, reasons: Mapping[fx.Node, str]) -> bool:
    """Directly, or through views."""
    return any(user in reasons or (user.target in VIEWS and _is_read_by(user, reasons)) for user in node.users)


def _is_bool(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool


def _condition(node: fx.Node) -> object:
    return node.args[0] if packet_of(node) is aten.where else node.args[1]


def _number_in(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
