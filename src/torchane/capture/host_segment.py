"""Cuts from a graph what PyTorch runs at one place between programs: a graph of its own."""

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import fx

from torchane.capture.drawn import draw_ourselves
from torchane.capture.graph import Cut
from torchane.capture.host_graph import add_rows_in_place, read_as_traced, write_rows_in_place
from torchane.capture.looked_up import look_up_ourselves
from torchane.plan.step_graph import Place


@dataclass(frozen=True)
class HostSegment:
    """graph: its inputs are `sources`, its outputs `leaving`. ops: what it runs, by name, and why on the host."""

    graph: fx.Graph
    ops: tuple[tuple[str, str], ...]
    sources: tuple[str, ...]
    leaving: tuple[str, ...]


def host_segment(
    graph: fx.Graph, cut: Cut, nodes: Sequence[fx.Node], there: Collection[fx.Node], written: Mapping[fx.Node, fx.Node] = MappingProxyType({})
) -> HostSegment:
    """Computes `nodes` from what is there, on the host; views and constants are made on the way. written: values that are the new one of an
    input, which may be written in place."""
    segment = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    sources: dict[fx.Node, None] = {}
    ran: list[tuple[str, str]] = []

    def make(node: fx.Node) -> fx.Node:
        if node in made:
            return made[node]
        if node in there:
            sources[node] = None
            made[node] = segment.placeholder(node.name)
            made[node].meta = dict(node.meta)
            return made[node]
        for arg in node.all_input_nodes:
            make(arg)
        made[node] = segment.node_copy(node, made.__getitem__)
        if cut.place[node] is Place.HOST and node.target is not operator.getitem:
            ran.append((str(node.target), cut.reasons.get(node, "")))
        return made[node]

    read = read_by(nodes, there)
    for node in graph.nodes:  # placeholders first, in the graph's order
        if node in read:
            make(node)
    for node in nodes:
        make(node)
    own = set(nodes)
    leaving = [node for node in nodes if not own.issuperset(node.users)]
    segment.output(tuple(made[node] for node in leaving))
    add_rows_in_place(segment, cut, made)
    write_rows_in_place(made, written)
    read_as_traced(segment)
    draw_ourselves(segment)
    look_up_ourselves(segment)
    return HostSegment(segment, tuple(ran), tuple(n.name for n in sources), tuple(n.name for n in leaving))


def read_by(nodes: Iterable[fx.Node], there: Collection[fx.Node]) -> set[fx.Node]:
    """Which values that are there these nodes are made from."""
    pending, seen = list(nodes), set(nodes)
    read = {node for node in pending if node in there}
    while pending:
        for arg in pending.pop().all_input_nodes:
            if arg in there:
                read.add(arg)
            elif arg not in seen:
                seen.add(arg)
                pending.append(arg)
    return read
