"""A search over cuts by their predicted time: how many layers share a program.

    by_layer ──► groups ──► runs of 1, 2, .. neighbours, from each place to begin ──► the least time; of those as good, the smallest programs
A dispatch costs as much as the arithmetic of a small layer, and what one layer hands to the next need not leave a program that holds
both. Against that stand the ports that a chip takes, the time that a compiler takes, and that equal layers share one program only where
they are cut alike. So a larger program must save at least `WORTH` of the step. Without a cost (`portable`) the cut is by_layer's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torchane.chips import Chip
from torchane.plan.constants import Pricing
from torchane.plan.estimate import Estimate
from torchane.plan.partition import Cut, Group, by_layer
from torchane.plan.pieces import ports_of
from torchane.plan.step_graph import CALLER, StepGraph

#: Of the predicted time of a graph: what larger programs must save. Less is below what predictions tell apart, and a program of twice
#: as many layers takes about 14 times as long to compile on an engine (chips/portable.toml, limit "layers").
WORTH = 0.01


def searched(graph: StepGraph, chip: Chip, cost: Pricing | None = None) -> Cut:
    """The cut whose programs are predicted to take the least time, each of neighbours among by_layer's groups."""
    cut = by_layer(graph, chip, cost)
    if cost is None or len(cut.groups) < 2:
        return cut
    search = _Search(graph, chip, cost, cut.groups)
    return replace(cut, groups=tuple(search.merged(run) for run in search.best().runs))


@dataclass(frozen=True)
class _Found:
    """One way to cut: runs of groups as (first, behind the last)."""

    runs: tuple[tuple[int, int], ...]
    largest: int
    programs: int
    time_s: float


class _Search:
    """Over runs of one graph's groups."""

    def __init__(self, graph: StepGraph, chip: Chip, cost: Pricing, groups: Sequence[Group]):
        self.graph = graph
        self.groups = groups
        self.most_ports = chip.limit("surfaces") - graph.own_ports
        self.most_layers = chip.limit("layers")
        self.most_programs = chip.limit("loaded_programs") // 2  # a forward's and its backward's
        self.estimate = Estimate(graph, cost)
        self._times: dict[tuple[int, int], float] = {}
        self._fits: dict[tuple[int, int], bool] = {}

    def best(self) -> _Found:
        """Of the ways that are within WORTH of the least time, the one of the smallest programs, then of the fewest."""
        ways = [self._found(runs) for runs in dict.fromkeys(self._ways())]
        fewest = min(way.programs for way in ways)
        ways = [way for way in ways if way.programs <= max(self.most_programs, fewest)]
        least = min(way.time_s for way in ways)
        return min((way for way in ways if way.time_s <= least + WORTH * ways[0].time_s), key=lambda way: (way.largest, way.programs, way.time_s))

    def merged(self, run: tuple[int, int]) -> Group:
        first, *others = self.groups[run[0] : run[1]]
        if not others:
            return first
        nodes = {name for group in (first, *others) for name in group.nodes}
        return Group(first.stage, _named([first.where, *(group.where for group in others)]), tuple(sorted(nodes, key=self.graph.order.__getitem__)))

    def _ways(self) -> Iterator[tuple[tuple[int, int], ...]]:
        """Runs of each length from each place to begin; that of single groups comes first."""
        for length in range(1, min(self.most_layers, len(self.groups)) + 1):
            for begin in range(length):
                yield tuple(self._runs(length, begin))

    def _runs(self, length: int, begin: int) -> Iterator[tuple[int, int]]:
        """Runs that end at begin, begin + length, ..; shorter where a run would not fit, or parts what must be parted."""
        count, at = len(self.groups), 0
        while at < count:
            end = min(count, at + (begin - at) % length if (begin - at) % length else at + length)
            while not self._holds(at, end):
                end -= 1
            yield at, end
            at = end

    def _holds(self, at: int, end: int) -> bool:
        """These groups may share a program: of one stage, none must begin one, and their ports fit."""
        if end - at == 1:
            return True
        if (at, end) not in self._fits:
            together = all(group.stage == self.groups[at].stage and group.nodes[0] not in self.graph.begins for group in self.groups[at + 1 : end])
            self._fits[at, end] = together and ports_of(self.graph, self._nodes(at, end)) <= self.most_ports
        return self._fits[at, end]

    def _nodes(self, at: int, end: int) -> tuple[str, ...]:
        return tuple(name for group in self.groups[at:end] for name in group.nodes)

    def _found(self, runs: tuple[tuple[int, int], ...]) -> _Found:
        for run in runs:
            if run not in self._times:
                self._times[run] = self.estimate.time_s(self._nodes(*run))
        alike = {tuple(self._shapes[at:end]) for at, end in runs}
        return _Found(runs, max(end - at for at, end in runs), len(alike), sum(self._times[run] for run in runs))

    @cached_property
    def _shapes(self) -> list[int]:
        """A number for each group, the same for groups that would share a program."""
        known: dict[tuple[object, ...], int] = {}
        return [known.setdefault(self._structure(group), len(known)) for group in self.groups]

    def _structure(self, group: Group) -> tuple[object, ...]:
        """Its ops, and what each reads: by its place in the group, or by what it is outside."""
        place = {name: i for i, name in enumerate(group.nodes)}
        nodes = self.graph.nodes

        def read(source: str) -> object:
            base = self.graph.base(source)
            if base in self.graph.constants:
                return base  # programs that differ in their constants are loaded one beside the other
            return place[base] if base in place else (nodes[base].place, nodes[base].role, nodes[base].shapes)

        return tuple(
            (nodes[name].op, nodes[name].shapes, tuple(map(read, nodes[name].inputs)), CALLER in self.graph.readers[name]) for name in group.nodes
        )


def _named(places: Sequence[str]) -> str:
    """`main+model.layers.5-3`: neighbours that differ in their last part only are a range."""
    ranges: list[tuple[str, str]] = []
    for place in places:
        if ranges and "." in place and ranges[-1][1].rpartition(".")[0] == place.rpartition(".")[0]:
            ranges[-1] = ranges[-1][0], place
        else:
            ranges.append((place, place))
    return "+".join(first if first == last else f"{first}-{last.rpartition('.')[2]}" for first, last in ((a or "main", b or "main") for a, b in ranges))
