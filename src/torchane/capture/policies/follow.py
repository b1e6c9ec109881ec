"""A backward follows its forward: what that sent to the host is recomputed there, and its gradient is taken there.

    forward     exp ─► host        name, autograd's number and layer
    backward    exp, recomputed ─► host        mul(grad, exp), of the same number ─► host
The gradient of an op is as sensitive as the op: 0 times exp(20) is 0 in fp32 and NaN in fp16, and a difference that fp16 could
not hold is no better in a gradient.
"""

from collections.abc import Mapping

import torch
from torch import fx

from torchane.capture.graph import VIEWS, layer_name
from torchane.capture.policies.facts import Facts, Forward
from torchane.capture.policies.homogeneous import packet_of
from torchane.capture.policies.precision.demands import DISTANCE, FEW_DIGITS
from torchane.capture.policies.precision.forms import without_views
from torchane.capture.policies.precision.origins import PRODUCTS
from torchane.capture.rules import RULES

aten = torch.ops.aten

_ARITHMETIC = frozenset({aten.mul, aten.div, aten.neg, aten.sum, aten.expand})

_GRADIENT = "gradient of an op on the host: "


def sent_to_host(reasons: Mapping[fx.Node, str], kinds: tuple[str, ...]) -> Forward:
    """What a backward must know of its forward: the ops whose reasons begin with one of `kinds`."""
    ours = {node: why for node, why in reasons.items() if why.startswith(kinds)}
    numbered = {key: why for node, why in ours.items() if (key := _number(node)) is not None}
    return Forward({node.name: why for node, why in ours.items()}, numbered)


def _number(node: fx.Node) -> tuple[int, str] | None:
    """Autograd numbers every differentiable op of a forward; its gradient has the same number. Equal layers share theirs."""
    number = node.meta.get("seq_nr")
    return None if number is None else (number, layer_name(node) or "")


def follow(graph: fx.Graph, facts: Facts) -> Mapping[fx.Node, str]:
    """The policy; it has nothing to say of a forward."""
    found: dict[fx.Node, str] = {}
    for node in graph.nodes if facts.forward is not None else ():
        if node.op != "call_function" or node.target not in RULES or node.target in VIEWS:
            continue
        if node.target in PRODUCTS and not _is_sent_to_host(facts.forward.by_number.get(_number(node), "")):
            continue
        is_recomputed = node.meta.get("partitioner_tag") == "is_forward"
        if is_recomputed and node.name in facts.forward.by_name:
            found[node] = facts.forward.by_name[node.name]
        elif node.meta.get("is_gradient_acc"):  # a sum of two ops' gradients has the number of either: a residual's is a program's
            whys = [found[source] for source in node.all_input_nodes if source in found]
            if whys and all(source in found or _is_arithmetic(source) for source in node.all_input_nodes):
                found[node] = whys[0]
        elif (why := facts.forward.by_number.get(_number(node))) is not None:
            kind, _, text = why.partition(": ")
            found[node] = why if is_recomputed else f"{kind}: {_GRADIENT}{text}"
    return found


def _is_sent_to_host(why: str) -> bool:
    """The reason of a product of the forward: others with its number are not its gradient."""
    return DISTANCE in why or FEW_DIGITS in why


def _is_arithmetic(node: fx.Node) -> bool:
    """Its result may be cancelled by the gradient that it is added to, and it is no product's, which would be fetched for that."""
    return packet_of(without_views(node)) in _ARITHMETIC
