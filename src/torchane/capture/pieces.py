"""Cuts a region that has too many ports for one program into pieces of consecutive ops.

    region ──► [piece, piece, ...]     equal pieces where its ops repeat: they share one program

What a region reads and gives are its ports, and a chip takes so many. A network without numbered blocks is one region, a
recurrent loop of many steps too. Where the ops repeat with a period (a layer, a step), a piece holds whole periods; elsewhere pieces
have equally many ops. A cut falls where few values cross it.
"""

import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from torch import fx

from torchane.capture.graph import Cut, Place, Region

#: Below this, ops that look alike at one distance are no loop.
_LEAST_ALIKE = 0.8


def cut_into_pieces(cut: Cut, most_ports: int, borders: Collection[fx.Node] = ()) -> Cut:
    """The cut with every region of more ports than that in pieces. A single op with more stays as it is.

    borders: ops that begin a piece of their own, whatever the number of ports.
    """
    counter = _Ports(cut)
    regions: list[Region] = []
    for region in cut.regions:
        for nodes in _between(region.nodes, borders):
            if counter.count(nodes) <= most_ports:
                pieces: list[Sequence[fx.Node]] = [nodes]
            else:
                pieces = _pieces(nodes, lambda nodes: counter.count(nodes) <= most_ports, counter)
            regions += [Region(region.stage, region.where, list(piece)) for piece in pieces]
    if len(regions) == len(cut.regions):
        return cut
    return replace(cut, regions=regions, region_of={node: i for i, region in enumerate(regions) for node in region.nodes})


def border_in(cut: Cut, nodes: Sequence[fx.Node]) -> fx.Node | None:
    """The op that would begin the second half of these; None where they cannot be parted."""
    halves = _even(nodes, 2, _Ports(cut))
    return None if halves is None else halves[1][0]


def _between(nodes: Sequence[fx.Node], borders: Collection[fx.Node]) -> list[Sequence[fx.Node]]:
    starts = [0, *(i for i, node in enumerate(nodes) if i and node in borders), len(nodes)]
    return [nodes[a:b] for a, b in zip(starts, starts[1:], strict=False)]


class _Ports:
    """How many values cross the border of some ops."""

    def __init__(self, cut: Cut):
        self.cut = cut

    def inputs(self, nodes: Sequence[fx.Node]) -> set[fx.Node]:
        inside = set(nodes)
        bases = {self.cut.base(source) for node in nodes for source in node.all_input_nodes}
        return {base for base in bases if base not in inside and self.cut.place[base] is not Place.CONSTANT}

    def outputs(self, nodes: Sequence[fx.Node]) -> set[fx.Node]:
        inside = set(nodes)
        return {node for node in nodes if any(user not in inside for user in self.readers(node))}

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Who reads the numbers of a node, itself or through a view."""
        found: list[fx.Node] = []
        for user in node.users:
            found += self.readers(user) if self.cut.place.get(user) is Place.VIEW else [user]
        return found

    def count(self, nodes: Sequence[fx.Node]) -> int:
        return len(self.inputs(nodes)) + len(self.outputs(nodes))

    def crossings(self, nodes: Sequence[fx.Node]) -> list[int | None]:
        """For each position, how many values of the ops before it are read behind it; None where an op would be parted
        from its own results."""
        position = {node: i for i, node in enumerate(nodes)}
        last = [max((position.get(user, -1) for user in self.readers(node)), default=-1) for node in nodes]
        counts: list[int | None] = [0] * (len(nodes) + 1)
        for i, node in enumerate(nodes):
            for at in range(i + 1, last[i] + 1):
                if counts[at] is not None:
                    counts[at] += 1  # type: ignore[operator]
            if node.target is operator.getitem and node.args[0] in position:
                counts[position[node.args[0]] + 1 : i + 1] = [None] * (i - position[node.args[0]])
        return counts


def _pieces(nodes: Sequence[fx.Node], fits: Callable[[Sequence[fx.Node]], bool], ports: _Ports) -> list[Sequence[fx.Node]]:
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


def _even(nodes: Sequence[fx.Node], count: int, ports: _Ports) -> list[Sequence[fx.Node]] | None:
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
    nodes: Sequence[fx.Node], fits: Callable[[Sequence[fx.Node]], bool], ports: _Ports
) -> list[Sequence[fx.Node]] | None:
    """Pieces of as many whole periods as fit; None where the ops do not repeat, or one period does not fit."""
    found = _period([_signature(node) for node in nodes])
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


def _joined(pieces: list[Sequence[fx.Node]], fits: Callable[[Sequence[fx.Node]], bool]) -> list[Sequence[fx.Node]]:
    """The first and the last piece, which are shorter, go with their neighbours where that fits."""
    if len(pieces) > 2 and fits([*pieces[0], *pieces[1]]):
        pieces = [[*pieces[0], *pieces[1]], *pieces[2:]]
    if len(pieces) > 2 and len(pieces[-1]) < len(pieces[-2]) and fits([*pieces[-2], *pieces[-1]]):
        pieces = [*pieces[:-2], [*pieces[-2], *pieces[-1]]]
    return pieces


def _signature(node: fx.Node) -> tuple[str, str]:
    value = node.meta.get("val")
    shapes = [tuple(item.shape) if hasattr(item, "shape") else None for item in (value if isinstance(value, list | tuple) else [value])]
    return str(node.target), str(shapes)


def _period(signatures: list[tuple[str, str]]) -> tuple[int, int, int] | None:
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
