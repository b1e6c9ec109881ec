"""Cuts a region that has too many ports for one program into pieces of consecutive ops.

    region ──► [piece, piece, ...]     equal pieces where its ops repeat: they share one program

What a region reads and gives are its ports, and a chip takes so many. A network without numbered blocks is one region, a
recurrent loop of many steps too. Where the ops repeat with a period (a layer, a step), a piece holds whole periods; elsewhere pieces
have equally many ops. A cut falls where few values cross it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torchane.plan.step_graph import Place, StepGraph

#: Below this, ops that look alike at one distance are no loop.
_LEAST_ALIKE = 0.8


def in_pieces(graph: StepGraph, nodes: Sequence[str], most_ports: int) -> list[tuple[str, ...]]:
    """Nodes in pieces of at most so many ports, each of which may begin where `graph.begins` says. A single op with more stays as it is."""
    counter = _Ports(graph)
    pieces: list[tuple[str, ...]] = []
    for part in _between(graph, nodes):
        if counter.count(part) <= most_ports:
            pieces.append(tuple(part))
        else:
            pieces += map(tuple, _pieces(part, lambda nodes: counter.count(nodes) <= most_ports, counter))
    return pieces


def ports_of(graph: StepGraph, nodes: Sequence[str]) -> int:
    """How many values a program of these nodes would read and give."""
    return _Ports(graph).count(nodes)


def border_in(graph: StepGraph, nodes: Sequence[str]) -> str | None:
    """The op that would begin the second half of these; None where they cannot be parted."""
    halves = _even(nodes, 2, _Ports(graph))
    return None if halves is None else halves[1][0]


def _between(graph: StepGraph, nodes: Sequence[str]) -> list[Sequence[str]]:
    starts = [0, *(i for i, name in enumerate(nodes) if i and name in graph.begins), len(nodes)]
    return [nodes[a:b] for a, b in zip(starts, starts[1:], strict=False)]


class _Ports:
    """How many values cross the border of some ops."""

    def __init__(self, graph: StepGraph):
        self.graph = graph

    def inputs(self, nodes: Sequence[str]) -> set[str]:
        inside = set(nodes)
        bases = {self.graph.base(source) for name in nodes for source in self.graph.nodes[name].inputs}
        return {base for base in bases if base not in inside and self.graph.nodes[base].place is not Place.CONSTANT}

    def outputs(self, nodes: Sequence[str]) -> set[str]:
        inside = set(nodes)
        return {name for name in nodes if not inside.issuperset(self.graph.through_views(name))}

    def count(self, nodes: Sequence[str]) -> int:
        return len(self.inputs(nodes)) + len(self.outputs(nodes))

    def signature(self, name: str) -> tuple[str, tuple[tuple[int, ...], ...]]:
        """Ops that look alike."""
        return self.graph.nodes[name].op, self.graph.nodes[name].shapes

    def crossings(self, nodes: Sequence[str]) -> list[int | None]:
        """For each position, how many values of the ops before it are read behind it; None where an op would be parted
        from its own results."""
        position = {name: i for i, name in enumerate(nodes)}
        last = [max((position.get(reader, -1) for reader in self.graph.through_views(name)), default=-1) for name in nodes]
        counts: list[int | None] = [0] * (len(nodes) + 1)
        for i, name in enumerate(nodes):
            for at in range(i + 1, last[i] + 1):
                if counts[at] is not None:
                    counts[at] += 1  # type: ignore[operator]
            whole = position.get(self.graph.nodes[name].part_of or "")
            if whole is not None:
                counts[whole + 1 : i + 1] = [None] * (i - whole)
        return counts


def _pieces(nodes: Sequence[str], fits: Callable[[Sequence[str]], bool], ports: _Ports) -> list[Sequence[str]]:
    """Pieces that fit, as few as that takes; single ops where nothing helps."""
    periodic = _periodic(nodes, fits, ports)
    if periodic is not None:
        return periodic
    for count in range(2, len(nodes) + 1):
        pieces = _even(nodes, count, ports)
        if pieces is None:
            break
        if all(fits(piece) for piece in pieces):
            return pieces
    return [nodes]


def _even(nodes: Sequence[str], count: int, ports: _Ports) -> list[Sequence[str]] | None:
    """So many pieces of about equal length; each border lies where the fewest values cross, near its place."""
    crossings = ports.crossings(nodes)
    length = len(nodes) / count
    borders = [0]
    for i in range(1, count):
        near = range(max(borders[-1] + 1, round((i - 0.3) * length)), min(len(nodes), round((i + 0.3) * length) + 1))
        allowed = [(crossings[at], abs(at - i * length), at) for at in near if crossings[at] is not None]
        if not allowed:
            return None
        borders.append(min(allowed)[2])
    borders.append(len(nodes))
    return [nodes[a:b] for a, b in zip(borders, borders[1:], strict=False)]


def _periodic(
    nodes: Sequence[str], fits: Callable[[Sequence[str]], bool], ports: _Ports
) -> list[Sequence[str]] | None:
    """Pieces of as many whole periods as fit; None where the ops do not repeat, or one period does not fit."""
    found = _period([ports.signature(name) for name in nodes])
    if found is None:
        return None
    begin, end, period = found
    crossings = ports.crossings(nodes)
    offsets = [at for at in range(begin, begin + period) if crossings[at] is not None]
    if not offsets:
        return None
    start = min(offsets, key=lambda at: (crossings[at], at))
    for periods in range((end - start) // period, 0, -1):
        borders = [0, *range(start, end + 1, periods * period), len(nodes)]
        borders = sorted({border for border in borders if border in (0, len(nodes)) or crossings[border] is not None})
        pieces = _joined([nodes[a:b] for a, b in zip(borders, borders[1:], strict=False)], fits)
        if all(fits(piece) for piece in pieces):
            return pieces
    return None


def _joined(pieces: list[Sequence[str]], fits: Callable[[Sequence[str]], bool]) -> list[Sequence[str]]:
    """The first and the last piece, which are shorter, go with their neighbours where that fits."""
    if len(pieces) > 2 and fits([*pieces[0], *pieces[1]]):
        pieces = [[*pieces[0], *pieces[1]], *pieces[2:]]
    if len(pieces) > 2 and len(pieces[-1]) < len(pieces[-2]) and fits([*pieces[-2], *pieces[-1]]):
        pieces = [*pieces[:-2], [*pieces[-2], *pieces[-1]]]
    return pieces


def _period(signatures: Sequence[Any]) -> tuple[int, int, int] | None:
    """Where the longest run of repeating ops begins and ends, and its period: the shortest with which most ops recur."""
    count = len(signatures)
    for period in range(1, count // 2 + 1):
        alike = [signatures[i] == signatures[i + period] for i in range(count - period)]
        if sum(alike) < _LEAST_ALIKE * len(alike):
            continue
        begin, end = _longest_run(alike)
        if end - begin >= period:
            return begin, end + period, period
    return None


def _longest_run(flags: list[bool]) -> tuple[int, int]:
    best, begin = (0, 0), 0
    for i, flag in enumerate([*flags, False]):
        if not flag:
            best, begin = max(best, (begin, i), key=lambda run: run[1] - run[0]), i + 1
    return best
