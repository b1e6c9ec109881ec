"""A forward or a backward as a partitioner sees it: values, who reads them, and where each may be computed. Needs no torch.

    node:  name, op, inputs ── place ──► INPUT     comes in
                                         CONSTANT  evaluated once, before anything runs
                                         HOST      PyTorch computes it; the reason is known
                                         PROGRAM   a program can hold it
                                         VIEW      moves no numbers: derived anew wherever its base is read

capture/graph.py makes it of what PyTorch traced. A partitioner (plan/partition.py) reads it and says which nodes share a program.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

#: Stands for the caller among the readers of a value.
CALLER = "output"
#: How the layer of what computes with one slice of a vocabulary begins: equal slices share a program, and nothing else joins one.
SLICES = "vocabulary."


class Place(enum.Enum):
    INPUT = "input"
    CONSTANT = "constant"
    HOST = "host"
    PROGRAM = "program"
    VIEW = "view"


class Role(enum.Enum):
    """What a value is in training. A saved value is an input of a backward that its forward kept."""

    TRAINED = "trained"
    FROZEN = "frozen"
    BATCH = "batch"
    MASK = "mask"
    SAVED = "saved"
    TANGENT = "tangent"
    GRADIENT = "gradient"
    ACTIVATION = "activation"


@dataclass(frozen=True)
class Node:
    """One value, or the op that gives several: those follow as nodes of their own, `part_of` it.

    op: as PyTorch calls it, `aten.mm.default`. inputs: names of nodes, each once. shapes: of its results. layer: the block of the
    user's model that it belongs to, empty outside of blocks, None where no module claims it. macs: multiply-adds. is_product: it
    multiplies matrices, or convolves. stays_with_readers: its result is beyond fp16 where a value passes between programs, though a
    program that holds its readers too has another order of the same arithmetic (a power). draws: it takes random numbers, in order.
    """

    name: str
    op: str
    place: Place
    inputs: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    role: Role = Role.ACTIVATION
    layer: str | None = None
    macs: int = 0
    is_product: bool = False
    part_of: str | None = None
    stays_with_readers: bool = False
    draws: bool = False


@dataclass(frozen=True)
class StepGraph:
    """nodes: in an order of execution. results: names of what the caller is given. own_ports: surfaces that every program has
    beside the values that it reads and gives. begins: nodes that must begin a program: that they were within one was refused. constants:
    frozen weights that programs are to hold."""

    nodes: Mapping[str, Node]
    results: tuple[str, ...] = ()
    own_ports: int = 0
    begins: frozenset[str] = field(default=frozenset())
    constants: frozenset[str] = field(default=frozenset())

    @cached_property
    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """Who reads a node, in order; CALLER last, for a result."""
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for source in node.inputs:
                found[source].append(node.name)
        for name in dict.fromkeys(self.results):
            found[name].append(CALLER)
        return {name: tuple(names) for name, names in found.items()}

    @cached_property
    def order(self) -> Mapping[str, int]:
        return {name: position for position, name in enumerate(self.nodes)}

    def base(self, name: str) -> str:
        """What a view rearranges; the node itself where it is none."""
        while self.nodes[name].place is Place.VIEW:
            name = self.nodes[name].inputs[0]
        return name

    def through_views(self, name: str) -> list[str]:
        """Who reads the numbers of a node, itself or a view of it."""
        found: list[str] = []
        for reader in self.readers[name]:
            is_view = reader != CALLER and self.nodes[reader].place is Place.VIEW
            found += self.through_views(reader) if is_view else [reader]
        return found
