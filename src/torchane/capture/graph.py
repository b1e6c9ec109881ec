"""From a captured ATen graph to the graph that a partitioner reads, and from its cut back to nodes.

    every node ── place ──► StepGraph ── partitioner (plan/partition.py) ──► Cut of names ──► Cut of nodes
A node that no tensor reaches is a constant; integers, masks, tables and ops without a rule are the host's; floating-point work with a
rule can be a program's; views move no numbers. Which of the program nodes share a program is the partitioner's to say.
"""

import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

import torchane.capture.vocabulary_ops  # noqa: F401  it defines four of the products
from torchane.capture.torch_private import HigherOrderOperator, run_and_save_rng_state
from torchane.chips import Chip
from torchane.plan.constants import Pricing
from torchane.plan.partition import Partitioner, by_layer, check
from torchane.plan.step_graph import SLICES, Node, Place, Role, StepGraph

aten = torch.ops.aten

#: Ops that rearrange or rename values. A view is never a boundary: what crosses is its base.
VIEWS = frozenset({
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.t.default, aten.transpose.int,
    aten.permute.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.detach.default, aten.alias.default, aten.clone.default, aten.expand.default,
    aten.lift_fresh_copy.default,
})  # fmt: skip

#: Products of matrices. A segment without one is not worth a dispatch where other segments have one.
CONTRACTIONS = frozenset({
    aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default, aten.convolution.default,
    aten.convolution_backward.default, aten.linear.default, aten.matmul.default, torch.ops.torchane.vocabulary_scores.default,
    torch.ops.torchane.vocabulary_kept_scores.default, torch.ops.torchane.vocabulary_gradient.default, torch.ops.torchane.vocabulary_gradient_of.default,
})  # fmt: skip


#: In a node's record: which slice of a vocabulary it belongs to (wide.py). Each is a layer of its own.
SLICE = "torchane_slice"


@dataclass
class Region:
    """Program nodes that become one program, in order; `where` names the modules they come from. Of `again`, which another region
    hands on, this one computes its own."""

    stage: int
    where: str
    nodes: list[fx.Node] = field(default_factory=list)
    again: frozenset[fx.Node] = frozenset()


@dataclass
class Cut:
    """The graph with every node placed. `reasons` says why a node is on the host; `static` are the nodes
    that derive from integers, masks or buffers alone; `step` is what the partitioner read. region_of: the region that hands a node on;
    holders: all that compute it."""

    graph: fx.Graph
    place: dict[fx.Node, Place]
    stage: dict[fx.Node, int]
    regions: list[Region]
    region_of: dict[fx.Node, int]
    reasons: dict[fx.Node, str]
    static: frozenset[fx.Node]
    step: StepGraph
    holders: dict[fx.Node, frozenset[int]]

    def base(self, node: fx.Node) -> fx.Node:
        """What a view rearranges; the node itself where it is none."""
        while self.place[node] is Place.VIEW:
            node = node.all_input_nodes[0]
        return node

    def is_on_host(self, node: fx.Node) -> bool:
        """Its values are there without any program having run in its stage."""
        return self.place[self.base(node)] in (Place.INPUT, Place.CONSTANT, Place.HOST)

    def made_of(self, inputs: Collection[fx.Node]) -> frozenset[fx.Node]:
        """These, and what is computed of them alone, constants and static values aside: a mask may be among what is made of inputs."""
        found = set(inputs)
        for node in self.graph.nodes:
            sources = node.all_input_nodes
            known = all(source in found or source in self.static or self.place[source] is Place.CONSTANT for source in sources)
            if node.op == "call_function" and known and any(source in found for source in sources):
                found.add(node)
        return frozenset(found)

    def is_read_elsewhere(self, node: fx.Node, user: fx.Node) -> bool:
        """A region that computes `user` reads `node` from another: it does not compute its own."""
        return not self.holders[user] <= self.holders[node]


def cut(
    graph: fx.Graph,
    reason_against: Callable[[fx.Node], str | None],
    static: Collection[fx.Node],
    chip: Chip,
    layer_of: Callable[[fx.Node], str | None] | None = None,
    seeds: Collection[fx.Node] = (),
    views: Collection[fx.Node] = (),
    roles: Mapping[fx.Node, Role] | None = None,
    own_ports: int = 0,
    begins: Collection[fx.Node] = (),
    partition: Partitioner = by_layer,
    cost: Pricing | None = None,
    constants: Collection[str] = (),
) -> Cut:
    """Places every node, and has the partitioner cut what programs can hold.

    reason_against: None where a program can hold the node, else why not. static: placeholders that hold
    buffers, integers or masks; what derives from those alone stays on the host, in full precision. seeds: constants that are
    the host's, since they are scaled where they are staged. views: what leaves as a view of another value. own_ports, begins: as in
    StepGraph, like constants. cost: what the partitioner is given to price programs with.
    """
    place, is_static = _places(graph, reason_against, static, reasons := {}, seeds, views)
    made = (_node(node, place[node], layer_of or layer_name, (roles or {}).get(node)) for node in place)
    results = tuple(node.name for node in graph.output_node().all_input_nodes)
    step = StepGraph({node.name: node for node in made}, results, own_ports, frozenset(node.name for node in begins), frozenset(constants))
    found = partition(step, chip, cost)
    check(step, found)
    by_name = {node.name: node for node in place}
    for name, reason in found.sent_to_host.items():
        place[by_name[name]], reasons[by_name[name]] = Place.HOST, reason
    regions = [
        Region(group.stage, group.where, [by_name[name] for name in group.nodes], frozenset(by_name[name] for name in group.again))
        for group in found.groups
    ]
    region_of = {node: i for i, region in enumerate(regions) for node in region.nodes if node not in region.again}
    holders: dict[fx.Node, frozenset[int]] = {}
    for i, region in enumerate(regions):
        holders |= {node: holders.get(node, frozenset()) | {i} for node in region.nodes}
    stages = {by_name[name]: stage for name, stage in found.stages.items()}
    derived = frozenset(node for node, claim in is_static.items() if claim)
    return Cut(graph, place, stages, regions, region_of, reasons, derived, step, holders)


def _node(node: fx.Node, place: Place, layer_of: Callable[[fx.Node], str | None], role: Role | None) -> Node:
    value = node.meta.get("val")
    results = value if isinstance(value, list | tuple) else [value]
    return Node(
        node.name,
        str(node.target),
        place,
        tuple(source.name for source in node.all_input_nodes),
        tuple(tuple(one.shape) for one in results if isinstance(one, torch.Tensor)),
        role or Role.ACTIVATION,
        layer_of(node) if place is Place.PROGRAM else None,
        macs_of(node) if place is Place.PROGRAM else 0,
        node.target in CONTRACTIONS,
        node.args[0].name if node.target is operator.getitem and isinstance(node.args[0], fx.Node) else None,
        _raises(node),
        draws(node),
    )


def macs_of(node: fx.Node) -> int:
    """Multiply-adds of a call, by torch's own formulas; 0 for what is no contraction."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet not in flop_registry:
        return 0
    values: Any = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    return int(flop_registry[packet](*values[0], **values[1], out_val=node.meta["val"])) // 2


def _places(
    graph: fx.Graph,
    reason_against: Callable[[fx.Node], str | None],
    static: Collection[fx.Node],
    reasons: dict[fx.Node, str],
    seeds: Collection[fx.Node],
    views: Collection[fx.Node],
) -> tuple[dict[fx.Node, Place], dict[fx.Node, bool]]:
    place: dict[fx.Node, Place] = {}
    is_static: dict[fx.Node, bool] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            place[node], is_static[node] = Place.INPUT, node in static
        elif node.op == "get_attr":
            place[node], is_static[node] = Place.CONSTANT, True
        elif node.op == "output":
            continue
        elif node in views:
            place[node], is_static[node] = Place.VIEW, is_static[node.all_input_nodes[0]]
        elif node in seeds:
            place[node], is_static[node], reasons[node] = Place.HOST, False, reason_against(node) or ""
        else:
            sources = node.all_input_nodes
            is_static[node] = all(is_static[source] for source in sources)
            place[node] = _place(node, sources, place, is_static[node], reason_against, reasons)
    return place, is_static


def _place(
    node: fx.Node,
    sources: list[fx.Node],
    place: dict[fx.Node, Place],
    is_static: bool,
    reason_against: Callable[[fx.Node], str | None],
    reasons: dict[fx.Node, str],
) -> Place:
    if all(place[source] is Place.CONSTANT for source in sources) and _is_repeatable(node):
        return Place.CONSTANT
    if is_static:
        reasons[node] = "it depends on integers, masks or buffers alone"
        return Place.HOST
    if node.target is operator.getitem:
        return place[sources[0]]  # one result of an op that has several goes where the op goes
    reason = reason_against(node)
    if reason is not None:
        reasons[node] = reason
        return Place.HOST
    if node.target in VIEWS and len(sources) == 1 and place[sources[0]] is not Place.CONSTANT:
        return Place.VIEW
    return Place.PROGRAM


def _is_repeatable(node: fx.Node) -> bool:
    """Gives the same at every step. A higher-order op may draw: `run_and_save_rng_state` around a dropout."""
    return not isinstance(node.target, HigherOrderOperator) and not draws(node)


def draws(node: fx.Node) -> bool:
    """It takes numbers from torch's generator."""
    return node.target is run_and_save_rng_state or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _raises(node: fx.Node) -> bool:
    """x ** n, or x * x, which is how the gradient of 1 / x is written."""
    is_square = node.target is aten.mul.Tensor and len(node.args) == 2 and node.args[0] is node.args[1]
    return node.target is aten.pow.Tensor_Scalar or is_square


def layer_name(node: fx.Node) -> str | None:
    """The repeated block that a node belongs to, e.g. `model.layers.3`; empty for modules outside of
    blocks, None where no module claims the node (a sum of gradients). A numbered convolution or activation of torch's own
    (nn.Sequential(nn.Conv2d, nn.ReLU, ...)) is no block: a program for each would cost a dispatch for each."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if SLICE in node.meta:
        return f"{SLICES}{node.meta[SLICE]}"
    if not stack:
        return None
    path, kind = list(stack.values())[-1]
    names = re.findall(r"\w+", path.replace("_modules", ""))
    numbered = [position for position, name in enumerate(names) if name.isdigit()]
    if not numbered or (numbered[0] == len(names) - 1 and _is_leaf(kind)):
        return ""
    return ".".join(names[2 : numbered[0] + 1])


#: The files of torch.nn.modules whose modules hold no others, but for the one named below.
_LEAVES = frozenset({
    "activation", "batchnorm", "channelshuffle", "conv", "dropout", "flatten", "fold", "instancenorm", "linear", "normalization",
    "padding", "pixelshuffle", "pooling", "sparse", "upsampling",
})  # fmt: skip


def _is_leaf(kind: Any) -> bool:
    """A module of torch's own that holds no others; kind: its class, or its class's whole name."""
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    module, _, own = name.rpartition(".")
    return module.removeprefix("torch.nn.modules.") in _LEAVES and own != "MultiheadAttention"
