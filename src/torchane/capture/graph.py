"""Cuts a captured ATen graph into what the host runs and what programs run.

    every node ── place ──► CONSTANT  no tensor reaches it: evaluated once, now
                            HOST      integers, masks, tables, and ops without a rule: PyTorch runs it
                            PROGRAM   floating-point work with a rule
                            VIEW      moves no numbers: derived anew wherever its base is read
    program nodes ── stage ──► segments between host work ── region ──► one program per layer

A node's stage is the earliest at which its inputs are there (even stages are the host's). Within a
stage, nodes are gathered by the layer that their module belongs to: equal layers then give equal
programs. The module stack only hints: data dependence decides, and a node that needs a later region's
value moves there.
"""

import enum
import operator
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from torchane.capture.torch_private import HigherOrderOperator, run_and_save_rng_state

aten = torch.ops.aten

#: Ops that rearrange or rename values. A view is never a boundary: what crosses is its base.
VIEWS = frozenset({
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.t.default, aten.transpose.int,
    aten.permute.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.detach.default, aten.alias.default, aten.clone.default, aten.expand.default,
    aten.lift_fresh_copy.default,
})  # fmt: skip

#: Products of matrices. A segment without one is not worth a dispatch beside segments that have one.
CONTRACTIONS = frozenset({
    aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default, aten.convolution.default,
    aten.convolution_backward.default, aten.linear.default, aten.matmul.default,
})  # fmt: skip


class Place(enum.Enum):
    INPUT = "input"
    CONSTANT = "constant"
    HOST = "host"
    PROGRAM = "program"
    VIEW = "view"


@dataclass
class Region:
    """Program nodes that become one program, in order; `where` names the modules they come from."""

    stage: int
    where: str
    nodes: list[fx.Node] = field(default_factory=list)


@dataclass
class Cut:
    """The graph with every node placed. `reasons` says why a node is on the host; `static` are the nodes
    that derive from integers, masks or buffers alone."""

    graph: fx.Graph
    place: dict[fx.Node, Place]
    stage: dict[fx.Node, int]
    regions: list[Region]
    region_of: dict[fx.Node, int]
    reasons: dict[fx.Node, str]
    static: frozenset[fx.Node]

    def base(self, node: fx.Node) -> fx.Node:
        """What a view rearranges; the node itself where it is none."""
        while self.place[node] is Place.VIEW:
            node = node.all_input_nodes[0]
        return node

    def is_on_host(self, node: fx.Node) -> bool:
        """Its values are there without any program having run in its stage."""
        return self.place[self.base(node)] in (Place.INPUT, Place.CONSTANT, Place.HOST)


def cut(
    graph: fx.Graph,
    reason_against: Callable[[fx.Node], str | None],
    static: Collection[fx.Node],
    layer_of: Callable[[fx.Node], str | None] | None = None,
    seeds: Collection[fx.Node] = (),
    views: Collection[fx.Node] = (),
) -> Cut:
    """Places every node.

    reason_against: None where a program can hold the node, else why not. static: placeholders that hold
    buffers, integers or masks; what derives from those alone stays on the host, in full precision. seeds: constants that are
    the host's, since they are scaled where they are staged. views: what leaves as a view of another value.
    """
    place, is_static = _places(graph, reason_against, static, reasons := {}, seeds, views)
    stage = _stages(graph, place)
    _send_small_segments_home(graph, place, stage, reasons)
    stage = _stages(graph, place)
    regions, region_of = _regions(graph, place, stage, layer_of or layer_name)
    derived = frozenset(node for node, claim in is_static.items() if claim)
    return Cut(graph, place, stage, regions, region_of, reasons, derived)


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


def _stages(graph: fx.Graph, place: dict[fx.Node, Place]) -> dict[fx.Node, int]:
    """Even: the host's; odd: the programs'. A view has its base's stage. Random numbers are drawn in the graph's order, which
    is eager's: a draw waits for those before it."""
    stage: dict[fx.Node, int] = {}
    drawn = 0
    for node in graph.nodes:
        if node.op == "output":
            continue
        before = max((stage[source] for source in node.all_input_nodes), default=0)
        if draws(node):
            before = drawn = max(before + before % 2, drawn)
        if place[node] is Place.PROGRAM:
            stage[node] = before + 1 - before % 2
        elif place[node] is Place.HOST:
            stage[node] = before + before % 2
        else:
            stage[node] = before
    for node in reversed(list(graph.nodes)):
        if _is_power(node, place) and all(place.get(user) is Place.PROGRAM for user in node.users):
            stage[node] = min((stage[user] for user in node.users), default=stage[node])  # see _move_powers_to_readers
    return stage


def _is_power(node: fx.Node, place: dict[fx.Node, Place]) -> bool:
    return place.get(node) is Place.PROGRAM and _raises(node)


def _raises(node: fx.Node) -> bool:
    """x ** n, or x * x, which is how the gradient of 1 / x is written."""
    is_square = node.target is aten.mul.Tensor and len(node.args) == 2 and node.args[0] is node.args[1]
    return node.target is aten.pow.Tensor_Scalar or is_square


def _send_small_segments_home(
    graph: fx.Graph, place: dict[fx.Node, Place], stage: dict[fx.Node, int], reasons: dict[fx.Node, str]
) -> None:
    heavy = {stage[node] for node in graph.nodes if node.target in CONTRACTIONS and place[node] is Place.PROGRAM}
    if not heavy:
        return
    for node in graph.nodes:
        if place.get(node) is Place.PROGRAM and stage[node] not in heavy:
            place[node] = Place.HOST
            reasons[node] = "its segment holds no matrix product, and a dispatch costs more than it"


def layer_name(node: fx.Node) -> str | None:
    """The repeated block that a node belongs to, e.g. `model.layers.3`; empty for modules outside of
    blocks, None where no module claims the node (a sum of gradients). A numbered convolution or activation of torch's own
    (nn.Sequential(nn.Conv2d, nn.ReLU, ...)) is no block: a program for each would cost a dispatch for each."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
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


def _regions(
    graph: fx.Graph,
    place: dict[fx.Node, Place],
    stage: dict[fx.Node, int],
    layer_of: Callable[[fx.Node], str | None],
) -> tuple[list[Region], dict[fx.Node, int]]:
    """Regions in order of execution; each program node is in exactly one.

    Within a stage a region gets its number when its layer is met first. A node's region is its layer's,
    or a later one where its inputs come from there.
    """
    regions: dict[int, list[Region]] = {}
    number: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if place.get(node) is Place.VIEW:
            source = node.all_input_nodes[0]
            number[node] = number.get(source, 0)
        if place.get(node) is not Place.PROGRAM:
            continue
        here = regions.setdefault(stage[node], [])
        floor = max((number.get(s, 0) for s in node.all_input_nodes if stage[s] == stage[node]), default=-1)
        number[node] = max(floor, _wanted(node, here, layer_of(node), floor, stage[node]))
        here[number[node]].nodes.append(node)
    _move_powers_to_readers(graph, regions, number, stage)
    ordered = [region for key in sorted(regions) for region in regions[key]]
    return ordered, {node: i for i, region in enumerate(ordered) for node in region.nodes}


def _move_powers_to_readers(
    graph: fx.Graph, regions: dict[int, list[Region]], number: dict[fx.Node, int], stage: dict[fx.Node, int]
) -> None:
    """A power that a later region alone reads is computed there: on its way between programs r ** 3 of a norm's gradient
    is inf from r = 41 on, while a program that holds its readers too multiplies in another order."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in reversed(list(graph.nodes)):
        if not _raises(node) or node not in number or node not in stage:
            continue
        here = regions[stage[node]]
        readers = {(stage.get(user), number.get(user)) for user in node.users}
        if len(readers) != 1 or (place := readers.pop())[0] != stage[node] or place[1] in (None, number[node]):
            continue
        source, target = here[number[node]].nodes, here[place[1]].nodes
        if node not in source or not any(user in target for user in node.users):
            continue  # a view of it is what they read
        source.remove(node)
        target.insert(next(i for i, other in enumerate(target) if order[other] > order[node]), node)
        number[node] = place[1]


def _wanted(node: fx.Node, here: list[Region], layer: str | None, floor: int, stage: int) -> int:
    """The number of the region that a layer's node belongs to, opening it where it is new."""
    if node.target is operator.getitem or (layer is None and floor >= 0):
        return floor
    if layer:
        known = next((i for i, region in enumerate(here) if region.where == layer), None)
        if known is not None:
            return known
    elif here and (floor < 0 or not here[floor].where):
        return max(floor, 0)  # modules outside of layers stay together
    here.append(Region(stage, layer or ""))
    return len(here) - 1
