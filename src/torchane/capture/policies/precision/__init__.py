"""Where fp16 is not enough: what PyTorch's autocast keeps in float32, unless a program is known to compute it as well.

    graph ── origins, bounds ──► demands ──► {node: reason}       of a forward
    backward ── the same ops, by autograd's numbers ──► host      its gradient is as sensitive as it
The yardstick is autocast on a float32 model: where its results in bf16 or fp16 are right, ours are. Products of matrices,
norms, softmax, activations and plain sums stay in programs, whose forms are tested over fp16's range (docs/numerics.md).
"""

from collections.abc import Mapping

from torch import fx

from torchane.capture.graph import VIEWS, layer_name
from torchane.capture.policies.facts import Facts, Forward
from torchane.capture.policies.precision.demands import PRECISION, Demands
from torchane.capture.policies.precision.origins import PRODUCTS, Origins
from torchane.capture.rules import RULES

__all__ = ["PRECISION", "precision", "sent_home"]


def precision(graph: fx.Graph, facts: Facts) -> Mapping[fx.Node, str]:
    """The policy. A backward follows its forward: what that sent home, recomputed, and its gradient."""
    if facts.precision == "fp16":
        return {}
    if facts.forward is not None:
        return _of_backward(graph, facts.forward)
    origins = Origins(graph, facts.raw, facts.weights, facts.static)
    return Demands(graph, origins, facts.given).find()


def sent_home(reasons: Mapping[fx.Node, str]) -> Forward:
    """What a backward must know of its forward."""
    ours = {node: why for node, why in reasons.items() if why.startswith(PRECISION)}
    numbered = {key: why for node, why in ours.items() if (key := _number(node)) is not None}
    return Forward({node.name: why for node, why in ours.items()}, numbered)


def _number(node: fx.Node) -> tuple[int, str] | None:
    """Autograd numbers every differentiable op of a forward; its gradient has the same number. Equal layers share theirs."""
    number = node.meta.get("seq_nr")
    return None if number is None else (number, layer_name(node) or "")


def _of_backward(graph: fx.Graph, forward: Forward) -> Mapping[fx.Node, str]:
    found: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in RULES or node.target in PRODUCTS | VIEWS:
            continue
        if node.name in forward.by_name and node.meta.get("partitioner_tag") == "is_forward":
            found[node] = forward.by_name[node.name]
        elif (why := forward.by_number.get(_number(node))) is not None:
            found[node] = why if node.meta.get("partitioner_tag") == "is_forward" else f"{PRECISION}gradient of an op on the host: {why.removeprefix(PRECISION)}"
    return found
