"""Which ops of a step share a program.

    StepGraph, chip, cost ──► Partitioner ──► Cut      groups, in order of execution; each becomes one program
A partitioner is a function, and needs neither torch nor a device. `by_layer` is the one in use: a program for each layer of the
model between two stages of host work. `check` says of any cut whether it can be carried out.

    stage   0      1          2      3          4            even: PyTorch on the host
            host   programs   host   programs   host         odd: programs, as early as their inputs are there
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torchane.chips import Chip
from torchane.errors import CompileError
from torchane.plan.constants import Pricing
from torchane.plan.pieces import in_pieces
from torchane.plan.step_graph import CALLER, SLICES, Place, StepGraph

TOO_SMALL = "its segment holds no matrix product, and a dispatch costs more than it"


@dataclass(frozen=True)
class Group:
    """Nodes that one program computes, in the graph's order. again: those among them that another group computes too and hands
    on, and that are computed here once more instead of being read. where: the modules that they come from."""

    stage: int
    where: str
    nodes: tuple[str, ...]
    again: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Cut:
    """groups: in order of execution. stages: of every node. sent_to_host: nodes that programs could hold and the host computes, with
    the reason."""

    groups: tuple[Group, ...]
    stages: Mapping[str, int]
    sent_to_host: Mapping[str, str] = field(default_factory=dict)


#: cost: what prices programs on the chip, None where nothing is known of it.
Partitioner = Callable[[StepGraph, Chip, Pricing | None], Cut]


class PartitionError(CompileError):
    """A cut that cannot be carried out."""


def by_layer(graph: StepGraph, chip: Chip, cost: Pricing | None = None) -> Cut:
    """A program for each layer in each stage, and several where one would have more ports than the chip takes.

    A segment between host work that multiplies no matrices goes to the host, where another segment of the graph does: a dispatch
    costs more than its arithmetic. Module names only hint: a node that needs a later group's value moves there.
    """
    to_host = dict.fromkeys(_small_segments(graph), TOO_SMALL)
    stages = stages_of(graph, to_host)
    most_ports = chip.limit("surfaces") - graph.own_ports
    groups: list[Group] = []
    for group in _gathered(graph, stages, to_host):
        pieces = in_pieces(graph, group.nodes, most_ports)
        groups += [replace(group, nodes=piece) for piece in pieces]
    return Cut(tuple(groups), stages, to_host)


def check(graph: StepGraph, cut: Cut) -> None:
    """Raises PartitionError where a node is in no group or in several, or where a group reads what a later one computes."""
    for name in cut.sent_to_host:
        if graph.nodes[name].place is not Place.PROGRAM:
            raise PartitionError(f"The cut sends {name} ({graph.nodes[name].op}) to the host, and no program could hold it.")
    at: dict[str, int] = {}
    for i, group in enumerate(cut.groups):
        for name in group.nodes:
            node = graph.nodes[name]
            if node.place is not Place.PROGRAM or name in cut.sent_to_host:
                raise PartitionError(f"Program {i} ({group.where}) is to hold {name} ({node.op}), which is computed elsewhere.")
            if cut.stages[name] != group.stage and name not in group.again:
                raise PartitionError(f"{name} ({node.op}) belongs to stage {cut.stages[name]}, and program {i} to {group.stage}.")
            if name not in group.again and at.setdefault(name, i) != i:
                raise PartitionError(f"{name} ({node.op}) is in programs {at[name]} and {i}, and is to be computed again in neither.")
    for name, node in graph.nodes.items():
        if node.place is Place.PROGRAM and name not in cut.sent_to_host and name not in at:
            raise PartitionError(f"{name} ({node.op}) is in no program.")
    for i, group in enumerate(cut.groups):
        for source in {graph.base(source) for name in group.nodes for source in graph.nodes[name].inputs}.difference(group.nodes):
            if at.get(source, -1) > i or cut.stages[source] > group.stage:
                raise PartitionError(f"Program {i} ({group.where}) reads {source}, which is computed after it.")


def stages_of(graph: StepGraph, to_host: Mapping[str, str]) -> dict[str, int]:
    """The earliest stage of every node. A view has its base's. Random numbers are drawn in the graph's order, which is eager's: a
    draw waits for those before it. to_host: nodes that the host computes though programs could."""
    stage: dict[str, int] = {}
    drawn = 0
    for name, node in graph.nodes.items():
        before = max((stage[source] for source in node.inputs), default=0)
        if node.draws:
            before = drawn = max(before + before % 2, drawn)
        if _is_in_program(graph, to_host, name):
            stage[name] = before + 1 - before % 2
        elif node.place is Place.HOST or name in to_host:
            stage[name] = before + before % 2
        else:
            stage[name] = before
    for name in reversed(list(graph.nodes)):
        if graph.nodes[name].stays_with_readers and _is_in_program(graph, to_host, name):
            readers = graph.readers[name]
            if all(reader != CALLER and _is_in_program(graph, to_host, reader) for reader in readers):
                stage[name] = min((stage[reader] for reader in readers), default=stage[name])  # see _move_to_readers
    return stage


def _is_in_program(graph: StepGraph, to_host: Mapping[str, str], name: str) -> bool:
    return graph.nodes[name].place is Place.PROGRAM and name not in to_host


def _small_segments(graph: StepGraph) -> list[str]:
    """Nodes of stages without a product of matrices, where others have one."""
    stage = stages_of(graph, {})
    in_programs = [node for node in graph.nodes.values() if node.place is Place.PROGRAM]
    heavy = {stage[node.name] for node in in_programs if node.is_product}
    return [node.name for node in in_programs if stage[node.name] not in heavy] if heavy else []


@dataclass
class _Gathering:
    """A group that still grows."""

    where: str
    nodes: list[str] = field(default_factory=list)


def _gathered(graph: StepGraph, stages: Mapping[str, int], to_host: Mapping[str, str]) -> list[Group]:
    """Groups in order of execution; each program node is in exactly one.

    Within a stage a group gets its number when its layer is met first. A node's group is its layer's, or a later one where its
    inputs come from there.
    """
    groups: dict[int, list[_Gathering]] = {}
    number: dict[str, int] = {}
    for name, node in graph.nodes.items():
        if node.place is Place.VIEW:
            number[name] = number.get(node.inputs[0], 0)
        if not _is_in_program(graph, to_host, name):
            continue
        here = groups.setdefault(stages[name], [])
        floor = max((number.get(s, 0) for s in node.inputs if stages[s] == stages[name]), default=-1)
        number[name] = max(floor, _wanted(node.part_of is not None, here, node.layer, floor))
        here[number[name]].nodes.append(name)
    _move_to_readers(graph, groups, number, stages)
    return [Group(stage, group.where, tuple(group.nodes)) for stage in sorted(groups) for group in groups[stage]]


def _wanted(is_part: bool, here: list[_Gathering], layer: str | None, floor: int) -> int:
    """The number of the group that a layer's node belongs to, opening it where it is new."""
    if is_part or (layer is None and floor >= 0):
        return floor
    if layer:
        known = next((i for i, group in enumerate(here) if group.where == layer), None)
        if known is not None:
            return known
    elif here and floor < 0 and not here[0].where.startswith(SLICES):
        return 0
    elif (known := next((i for i, group in enumerate(here) if i >= floor and not group.where), None)) is not None:
        return known  # modules outside of layers stay together
    here.append(_Gathering(layer or ""))
    return len(here) - 1


def _move_to_readers(
    graph: StepGraph, groups: Mapping[int, list[_Gathering]], number: dict[str, int], stages: Mapping[str, int]
) -> None:
    """A power that a later group alone reads is computed there: on its way between programs r ** 3 of a norm's gradient is inf from
    r = 41 on, while a program that holds its readers too multiplies in another order."""
    for name in reversed(list(graph.nodes)):
        if not graph.nodes[name].stays_with_readers or name not in number:
            continue
        here = groups[stages[name]]
        readers = {(stages.get(reader), number.get(reader)) for reader in graph.readers[name]}
        if len(readers) != 1:
            continue
        stage, target = readers.pop()
        if stage != stages[name] or target is None or target == number[name]:
            continue
        source, nodes = here[number[name]].nodes, here[target].nodes
        if name not in source or not any(reader in nodes for reader in graph.readers[name]):
            continue  # a view of it is what they read
        source.remove(name)
        nodes.insert(next(i for i, other in enumerate(nodes) if graph.order[other] > graph.order[name]), name)
        number[name] = target
