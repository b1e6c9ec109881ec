"""Partitioners other than the one in use."""

from dataclasses import replace

from torchane.plan.partition import Cut, Group, by_layer


def two_layers_a_program(graph, chip, cost) -> Cut:
    """Neighbours of one stage share a program, as long as their ports fit."""
    cut = by_layer(graph, chip, cost)
    groups: list[Group] = []
    for group in cut.groups:
        last = groups[-1] if groups else None
        if last is not None and last.stage == group.stage and "+" not in last.where:
            nodes = tuple(sorted((*last.nodes, *group.nodes), key=graph.order.__getitem__))
            groups[-1] = Group(group.stage, f"{last.where}+{group.where}", nodes)
        else:
            groups.append(group)
    return replace(cut, groups=tuple(groups))


def half_a_layer_a_program(graph, chip, cost) -> Cut:
    """Each program of today in two, an op never parted from its own results."""
    cut = by_layer(graph, chip, cost)
    groups: list[Group] = []
    for group in cut.groups:
        middle = len(group.nodes) // 2
        while middle < len(group.nodes) and graph.nodes[group.nodes[middle]].part_of is not None:
            middle += 1
        groups += [replace(group, nodes=part) for part in (group.nodes[:middle], group.nodes[middle:]) if part]
    return replace(cut, groups=tuple(groups))


def sums_again(graph, chip, cost) -> Cut:
    """Element-wise ops that read only what comes into a stage are computed in every program that reads them."""
    cut = by_layer(graph, chip, cost)
    place = {name: i for i, group in enumerate(cut.groups) for name in group.nodes}
    groups = []
    for i, group in enumerate(cut.groups):
        sources = {graph.base(source) for name in group.nodes for source in graph.nodes[name].inputs}
        again = {
            source for source in sources
            if place.get(source, i) < i and cut.stages[source] == group.stage and graph.nodes[source].op.startswith(("aten.add.", "aten.mul."))
            and all(place.get(graph.base(one)) != place[source] for one in graph.nodes[source].inputs)
        }  # fmt: skip
        nodes = tuple(sorted({*group.nodes, *again}, key=graph.order.__getitem__))
        groups.append(Group(group.stage, group.where, nodes, frozenset(again)))
    return replace(cut, groups=tuple(groups))
