"""From a captured graph to a Plan: tidied, placed by the policies, cut by the partitioner, lowered and scheduled.

    graph ── policies ──► what the host must run ── cut ──► regions ── lower, schedule ──► Plan
                               ▲                                │
                               └─────── an op without a legal form, and the graph is cut again
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from torchane.capture.aliases import keep_views_of_results
from torchane.capture.draws import draw_from_shapes
from torchane.capture.few_bits import dequantise
from torchane.capture.frozen import frozen_of, lent_of
from torchane.capture.graph import Cut, cut
from torchane.capture.planned import Planned, Source
from torchane.capture.policies import FOLLOWED, Facts, State, host_reasons
from torchane.capture.policies.facts import Forward
from torchane.capture.policies.follow import sent_to_host
from torchane.capture.policies.left_out import LeftOut, left_out_of
from torchane.capture.policies.linearity import linearity_of
from torchane.capture.policies.masks import add_what_is_subtracted, let_softmax_give_zeros, level_masks
from torchane.capture.region import RegionCompiler, RegionError
from torchane.capture.roles import Roles, Saved
from torchane.capture.rules import why_not
from torchane.capture.schedule import Scheduler
from torchane.capture.tidy import fill_missing_values, leave_out_empty_tensors
from torchane.capture.wide import Blocks, adopt_slices, cut_wide_products
from torchane.plan.constants import Pricing
from torchane.plan.partition import Partitioner, by_layer
from torchane.plan.pieces import border_in
from torchane.plan.step_graph import Role


@dataclass(frozen=True)
class Placed:
    """What the policies decided of a graph. refused: why the host runs a node. levelled: names of the masks that were."""

    source: Source
    static: frozenset[fx.Node]
    seeds: frozenset[fx.Node]
    views: frozenset[fx.Node]
    refused: Mapping[fx.Node, str]
    forward: Forward
    levelled: frozenset[str]


def plan_graph(
    name: str, module: fx.GraphModule, roles: Roles, compiler: RegionCompiler, partition: Partitioner = by_layer, cost: Pricing | None = None
) -> tuple[Planned, Saved]:
    """Cuts, lowers and schedules one graph; with it, what it leaves for its backward. cost: what the partitioner prices programs with.

    An op that turns out to have no legal form goes to the host with the reason, and the graph is cut again. Where every op of a
    region has one, and the region has none, it is cut in two.
    """
    placed = _placed(name, module, roles, compiler)
    refused = dict(placed.refused)
    begins: set[fx.Node] = set()
    while True:
        found = compiler.cut(_cut(placed, refused, begins, compiler, partition, cost))
        scheduler = Scheduler(placed.source, found, compiler.again())
        try:
            planned = scheduler.run()
        except RegionError as error:
            assert not refused.keys() >= set(error.nodes), "a region was refused again after its ops went to the host"
            blamed = scheduler.blamed(error)
            border = border_in(found.step, [node.name for node in error.nodes]) if not blamed else None
            if border is not None:
                begins.add(next(node for node in error.nodes if node.name == border))
            else:
                refused.update(blamed or dict.fromkeys(error.nodes, str(error)))
        else:
            return planned, _saved(planned, placed)


def _placed(name: str, module: fx.GraphModule, roles: Roles, compiler: RegionCompiler) -> Placed:
    graph = module.graph
    fill_missing_values(graph)
    leave_out_empty_tensors(graph)
    draw_from_shapes(graph)
    add_what_is_subtracted(graph)
    let_softmax_give_zeros(graph)
    views = keep_views_of_results(graph, roles.kept)
    blocks = cut_wide_products(graph, roles.weights, roles.before.wide, compiler.chip.widest_matrix)
    adopt_slices(graph, roles.weights, blocks)
    roles = replace(roles, weights=roles.weights | blocks.weights)
    nodes = {node.name: node for node in graph.nodes}
    static = frozenset(nodes[one] for one in roles.static if one in nodes)
    data = frozenset(nodes[one] for one in roles.data if one in nodes)
    masks, levelled = level_masks(graph, static | data, roles.before.levelled)
    facts = _facts(graph, roles, static, compiler, blocks)
    linearity = linearity_of(graph, facts.tangents, facts.kept)
    refused = {**masks, **host_reasons(graph, replace(facts, on_host={**masks, **linearity.reasons, **facts.on_host}))}
    forward = sent_to_host(refused, FOLLOWED)
    left_out = LeftOut()
    if not roles.tangents:
        left_out = left_out_of(graph, static, data, facts.given, lambda node: node in refused or why_not(node, compiler.chip) is not None)
        refused = {**left_out.reasons, **refused}
    frozen = frozen_of(graph, roles, blocks, compiler.frozen)
    source = Source(name, module, roles, blocks, linearity.scaled, left_out.numbers, frozen, lent_of(graph, roles, compiler.frozen))
    return Placed(source, static, linearity.seeds, frozenset(views), refused, forward, levelled)


def _cut(
    placed: Placed, refused: Mapping[fx.Node, str], begins: Collection[fx.Node], compiler: RegionCompiler, partition: Partitioner,
    cost: Pricing | None,
) -> Cut:
    graph, roles = placed.source.module.graph, placed.source.roles
    return cut(
        graph,
        lambda node: why_not(node, compiler.chip) or refused.get(node),
        placed.static,
        compiler.chip,
        seeds=placed.seeds,
        views=placed.views,
        roles={
            **dict.fromkeys(placed.source.scaled, Role.GRADIENT),
            **{node: roles.of(node.name) for node in graph.find_nodes(op="placeholder")},
            **{node: Role.FROZEN for node in graph.nodes if node.name in placed.source.frozen or node.target is dequantise},
        },
        own_ports=2 if compiler.ranges else 0,  # range control's
        begins=begins,
        partition=partition,
        cost=cost,
        constants=placed.source.frozen.keys(),
    )


def _saved(planned: Planned, placed: Placed) -> Saved:
    roles = placed.source.roles
    kept = planned.plan.kept_names
    return Saved(
        {name: layout for name, layout in planned.layouts.items() if name in kept},
        planned.unscaled & kept,
        roles.weights | placed.source.frozen.keys(),  # views of frozen weights that are saved
        {name: layout for name, layout in planned.layouts.items() if name in roles.weights},
        roles.static | {node.name for node in planned.cut.static},  # the backward gets some of them, saved
        placed.source.blocks.shapes,
        placed.forward,
        placed.levelled,
        placed.source.frozen,
        placed.source.lent,
    )


def _facts(graph: fx.Graph, roles: Roles, static: Collection[fx.Node], compiler: RegionCompiler, blocks: Blocks) -> Facts:
    inputs = {node.name: node for node in graph.find_nodes(op="placeholder")}
    results = graph.output_node().args[0]
    return Facts(
        compiler.chip,
        frozenset(inputs[name] for name in roles.tangents if name in inputs),
        frozenset(inputs[name] for name in roles.weights if name in inputs),
        frozenset(static),
        frozenset(results[i] for i in roles.kept if isinstance(results[i], fx.Node)),
        dict(blocks.reasons),
        compiler.ranges,
        frozenset(inputs[name] for name in roles.data if name in inputs),
        frozenset(inputs[name] for name in roles.raw if name in inputs),
        frozenset(node for i, node in enumerate(results) if i not in roles.kept and isinstance(node, fx.Node)),
        roles.precision,
        roles.saved.sent_to_host if roles.saved is not None else None,
        _state(results, inputs, roles),
    )


def _state(results: Sequence[Any], inputs: Mapping[str, fx.Node], roles: Roles) -> State:
    returned = frozenset(results[i] for i in roles.returned if isinstance(results[i], fx.Node))
    lasting, frozen = (frozenset(inputs[name] for name in names if name in inputs) for names in (roles.lasting, roles.frozen))
    return State(roles.new_values(results, inputs), returned, lasting, roles.is_inference, frozen)
