"""What the loss scale may touch: gradients, through ops that it passes through.

    tangent ── scaled ──► mm ──► tanh_backward ──► add ──► ...      2^k times the gradient: programs
                                                    │ clamp         true numbers: the host
    ones (an injected loss) ── scaled, too ──► mul ─┘

Programs hold gradients multiplied by one power of two, which is divided out where they leave. That is right for an op
that gives 2^k times its result for 2^k times its gradients (homogeneous.py). Every other op that reads a gradient, a clip, a
sign, a norm, a penalty added to it, runs in PyTorch, where the boundary has made the numbers true; what it gives is multiplied again
where it is staged. So every float that comes of a gradient is 2^k times itself in a program, wherever it was computed.

A gradient may also begin inside the graph: an injected loss, whose gradient is 1, or `torch.func.grad`, which puts a whole backward
into the forward. Where it begins with a constant, the constant is staged as a tangent is. Where not (a penalty that is made
of activations, the vectors of a `vjp`), nothing says which of its values are small, and the host computes it.
Range control knows the power of every value, and is right without any of this but for one thing: what no scale passes through
would read small true numbers in fp16.
"""

import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from torchane.capture.graph import VIEWS
from torchane.capture.policies.homogeneous import CREATORS, is_homogeneous, packet_of, zeros_in
from torchane.capture.torch_private import OpOverload, autograd_grad

NOT_PROPORTIONAL = "its result is not proportional to the incoming gradient, which programs hold multiplied by the loss scale"
NOT_REACHED = "it is part of a gradient that does not come from outside, so that no loss scale keeps it in fp16's range"
SEED = "a gradient begins with it, which is multiplied by the loss scale where it is staged"

#: Rounds in which gradients that begin in the graph are looked for one by one; then all that are left at once.
_ROUNDS = 16


@dataclass(frozen=True)
class Linearity:
    """scaled: every float that programs hold multiplied by the loss scale, the tangents among them. seeds: the constants
    among them. reasons: why the host must run a node. own: what is a gradient, and not scaled."""

    scaled: frozenset[fx.Node] = frozenset()
    seeds: frozenset[fx.Node] = frozenset()
    reasons: Mapping[fx.Node, str] = field(default_factory=dict)
    own: frozenset[fx.Node] = frozenset()


def linearity_of(graph: fx.Graph, tangents: Collection[fx.Node], kept: Collection[fx.Node] = ()) -> Linearity:
    """Follows the gradients of a graph, those that come in as `tangents` and those that begin in it.

    kept: results that are saved for a later backward.
    """
    return _Follower(graph, tangents, kept).run()


def keep_in_backward(joint: fx.Graph) -> None:
    """Forbids the partition to move the parts of gradients that no tangent reaches into the forward, where nobody would know them for
    gradients."""
    tangents = {node for node in joint.find_nodes(op="placeholder") if node.name.startswith("tangents")}
    found = linearity_of(joint, tangents)
    if not found.seeds and not found.own:
        return
    reached = set(tangents)
    for node in joint.nodes:
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    for node in found.scaled | found.own:
        if node not in reached and node.meta.get("partitioner_tag") == "is_backward":
            node.meta["partitioner_tag"] = "must_be_in_backward"


def _is_of_inner_gradient(node: fx.Node) -> bool:
    """`torch.func.grad` and its kin put it into a forward."""
    calls = node.meta.get("source_fn_stack") or ()
    return any(target is autograd_grad or target is torch.autograd.grad for _, target in calls)


class _Follower:
    def __init__(self, graph: fx.Graph, tangents: Collection[fx.Node], kept: Collection[fx.Node]):
        self.nodes = [node for node in graph.nodes if node.op != "output"]
        self.floats = {node for node in self.nodes if _holds_floats(node)}
        self.tangents = self.floats.intersection(tangents)
        self.kept = kept
        self.inner = {node for node in self.floats if _is_of_inner_gradient(node)}
        self.region = {node for node in self.floats if self._is_of_gradient(node)}
        if self.tangents or self.region:
            self.zeros = zeros_in(graph)
            self.constants = self._constants()

    def _is_of_gradient(self, node: fx.Node) -> bool:
        if node in self.inner:
            return True
        is_of_backward = node.op == "call_function" and node.meta.get("partitioner_tag") != "is_forward"
        return bool(self.tangents) and is_of_backward

    def run(self) -> Linearity:
        if not self.tangents and not self.region:
            return Linearity()
        seeds: set[fx.Node] = set()
        while True:
            scaled, broken = self._followed(seeds)
            own = self._own(scaled, broken)
            found = self._beginnings(own, scaled) if self._may_begin() else []
            if not found:
                break
            seeds.update(found if len(seeds) >= _ROUNDS else found[:1])
        sent = dict.fromkeys(broken, NOT_PROPORTIONAL) | dict.fromkeys(own, NOT_REACHED)
        reasons = {node: reason for node, reason in sent.items() if node.op == "call_function" and node.target not in VIEWS}
        for seed in seeds:
            reasons |= dict.fromkeys(self._chain(seed), SEED)
        return Linearity(frozenset(scaled), frozenset(seeds), reasons, frozenset(own))

    def _followed(self, seeds: Collection[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
        """Every float that is scaled, and the ops that read one and are not proportional to it. What these give is scaled
        again if it is part of a gradient; else (a weight less its gradient) it is a number like others."""
        scaled: set[fx.Node] = {*self.tangents, *seeds}
        broken: set[fx.Node] = set()

        def is_scaled(arg: Any) -> bool:
            return isinstance(arg, fx.Node) and arg in scaled

        for node in self.nodes:
            if node in scaled or node in self.constants or not any(map(is_scaled, node.all_input_nodes)):
                continue
            if node.target is not operator.getitem and not is_homogeneous(node, is_scaled, self.zeros):
                broken.add(node)
                if node not in self.region:
                    continue
            if node in self.floats:
                scaled.add(node)
        return scaled, broken

    def _own(self, scaled: Collection[fx.Node], broken: Collection[fx.Node]) -> set[fx.Node]:
        """Parts of gradients that nothing scales: what leaves as a gradient or is added to one, and what that is made of."""
        plain = {node for node in self.region if node not in scaled and node not in self.zeros}
        found = {node for node in plain if any(self._takes_a_gradient(user, broken) for user in node.users)}
        if not self._may_begin() or self.tangents:  # a gradient of a forward whose backward is this graph, or follows
            found |= self._made_of_inner(plain)
        pending = list(found)
        while pending:
            for source in pending.pop().all_input_nodes:
                if source in plain and source not in found:
                    found.add(source)
                    pending.append(source)
        return found

    def _made_of_inner(self, plain: Collection[fx.Node]) -> set[fx.Node]:
        """The gradients of the forward, unscaled, and whatever reads them or what that gives."""
        found = self.inner.intersection(plain)
        pending = list(found)
        while pending:
            node = pending.pop()
            readers = [user for user in node.users if user in self.region and user not in found] if node in plain else []
            found.update(readers)
            pending += readers
        return found

    def _takes_a_gradient(self, user: fx.Node, broken: Collection[fx.Node]) -> bool:
        return user.op == "output" or user in broken or (user in self.floats and user not in self.region)

    def _may_begin(self) -> bool:
        """Whether what begins here may be scaled: not what a later backward reads as it is, and not where a second try, with
        another scale, would write twice."""
        if self.tangents:
            return True
        is_written = any(getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in self.nodes)
        return not self.kept and not is_written

    def _constants(self) -> frozenset[fx.Node]:
        """Those that depend on no tensor's values."""
        found: set[fx.Node] = set()
        for node in self.nodes:
            if node.op == "get_attr" or packet_of(node) in CREATORS:
                found.add(node)
            elif isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded not in node.target.tags:
                if all(source in found for source in node.all_input_nodes):
                    found.add(node)
        return frozenset(found)

    def _beginnings(self, own: Collection[fx.Node], scaled: Collection[fx.Node]) -> list[fx.Node]:
        """The constants that gradients of their own begin with, each as late as it is one."""
        return [
            node
            for node in self.nodes
            if node in self.constants and node in self.floats and node not in scaled and node not in self.zeros
            and any(user in own and user not in self.constants for user in node.users)
        ]  # fmt: skip

    def _chain(self, seed: fx.Node) -> Iterator[fx.Node]:
        """A constant and those that it is made of: a small one is nothing in fp16."""
        yield seed
        for source in seed.all_input_nodes if packet_of(seed) not in CREATORS else ():
            yield from self._chain(source)


def _holds_floats(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(one, torch.Tensor) and one.is_floating_point() for one in values)
