"""Which parameters are constants of programs, and in which form: those that want no gradient and that the graph does not write.

    parameter, requires_grad=False ──► constant, fp16
                                   └─► products alone read it, and it is a matrix ──► constant, in as few bits as asked for
A matrix that anything else reads, an embedding that is the head as well, stays fp16: PyTorch would read other numbers than programs. So does one
that is saved for the backward in another order of its axes, where rows are others. A backward takes the forms of its forward. The option `frozen` says whether there are constants at all,
and whether a frozen weight that is an input keeps its surface from its forward to its backward.
"""

from collections.abc import Collection, Mapping

import torch
from torch import fx

from torchane.capture.few_bits import dequantise
from torchane.capture.graph import CONTRACTIONS, VIEWS
from torchane.capture.roles import Roles
from torchane.capture.wide import Blocks
from torchane.chips.points import Layer, machine
from torchane.passes.bake_constants import Pays
from torchane.plan.constants import Pricing
from torchane.plan.cost import layer_cost

#: The choice of the option by which frozen weights are inputs like others.
INPUTS = "inputs"
#: The same, in surfaces that are other values' before and afterwards.
REUSED = "reused"


def frozen_of(graph: fx.Graph, roles: Roles, blocks: Blocks, form: str) -> dict[str, str]:
    """Values that programs hold as constants, by name, with the form whose numbers they have."""
    if form in (INPUTS, REUSED):
        return {}
    nodes = {node.name: node for node in graph.nodes}
    if roles.tangents:
        return {name: known for name, known in roles.before.frozen.items() if name in nodes}
    frozen = roles.frozen - set(roles.written.values())
    results = graph.output_node().args[0]
    saved = {results[i] for i in roles.kept} - {result for i, result in enumerate(results) if i not in roles.kept}
    found = {}
    for name in roles.weights:
        node = nodes[name]
        if node.op == "placeholder" and name in frozen:
            is_wide = tuple(node.meta["val"].shape) in blocks.shapes
            found[name] = form if node.meta["val"].dim() == 2 and not is_wide and _is_only_multiplied(node, saved) else "fp16"
        elif node.op != "placeholder" and node.all_input_nodes[0].name in frozen:
            found[name] = "fp16"
    views = (node for node in saved if isinstance(node, fx.Node) and node.target in VIEWS and _base(node).name in found)
    return found | {node.name: "fp16" for node in views}


def lent_of(graph: fx.Graph, roles: Roles, form: str) -> frozenset[str]:
    """Weights that are staged for each use: the frozen ones and blocks of them, where the option says so, and what is kept in few bits."""
    if roles.tangents:
        known = roles.before.lent
    else:
        known = roles.frozen - set(roles.written.values()) if form == REUSED else frozenset()
    few_bits = {node.name for node in graph.find_nodes(op="call_function", target=dequantise)}
    blocks = {node.name for node in graph.nodes if node.op != "placeholder" and node.name in roles.weights and node.all_input_nodes[0].name in known}
    return known | few_bits | blocks


def _is_only_multiplied(node: fx.Node, saved: Collection[fx.Node]) -> bool:
    """By products, in programs or on the host; a view of it may not be saved, and it may."""
    return all(
        (user.target in VIEWS and _is_only_multiplied(user, ())) or user.target in CONTRACTIONS or (user.op == "output" and node in saved)
        for user in node.users
    )  # fmt: skip


def _base(node: fx.Node) -> fx.Node:
    while node.target in VIEWS:
        node = node.all_input_nodes[0]
    return node


def convolution_pays(cost: Pricing | None) -> Pays:
    """Whether a product with a constant is no slower as a convolution than as a matmul. Without a cost always: its weights are read once."""
    if cost is None:
        return lambda inner, outer, columns: True
    hardware = machine(cost.name)

    def pays(inner: int, outer: int, columns: int) -> bool:
        times = (layer_cost(Layer(kind, 1, inner, outer, columns), hardware, cost.engine, cost.shared).time_s for kind in ("conv", "linear"))
        as_conv, as_matmul = times
        return as_conv <= as_matmul

    return pays


def constants_among(names: Mapping[str, str], nodes: Collection[fx.Node]) -> dict[fx.Node, str]:
    """Of some values those that are constants."""
    return {node: names[node.name] for node in nodes if node.name in names and isinstance(node.meta.get("val"), torch.Tensor)}
