"""What the nodes of a program-to-be cost, before anything is lowered: for a search that compares many cuts.

    estimate = Estimate(graph, pricing)
    estimate.time_s(("mm", "add", "mm_1"))     one run, in a loop of programs whose surfaces stay where they are

The same constants as `price_programs`, on the graph's ops instead of the program's: a product is one layer, every other op is one
pass over its largest value. What lowering adds (a norm is several ops, a gate four, a layout makes one product several) is left out, so
an estimate lies at 0.3 to 1.5 times the price of the program (tiny, M4). All of that is the same in every cut: two cuts differ in
dispatches, in surfaces, and in what is hidden behind products, and these are priced as they will be.
"""

import math
from collections.abc import Collection, Sequence
from functools import cached_property

from torchane.chips.points import Layer, machine
from torchane.plan.constants import Pricing
from torchane.plan.cost import program_cost
from torchane.plan.step_graph import Node, Place, StepGraph
from torchane.plan.work import product

#: Bytes of a number in a surface.
_FP16 = 2


class Estimate:
    """Of groups of one graph's nodes."""

    def __init__(self, graph: StepGraph, pricing: Pricing):
        self.graph = graph
        self.pricing = pricing
        self._machine = machine(pricing.name)

    def time_s(self, nodes: Sequence[str]) -> float:
        """Seconds of one run of a program of these nodes."""
        inside = set(nodes)
        layers = [layer for name in nodes for layer in self._layers(self.graph.nodes[name])]
        read = {base for name in nodes for base in self._sources[name] if base not in inside and base not in self.graph.constants}
        given = {name for name in nodes if not inside.issuperset(self._readers[name])}
        return program_cost(
            layers, self._bytes(read), self._bytes(given), self._machine, self.pricing.engine, self.pricing.shared, in_a_loop=True
        ).time_s

    @cached_property
    def _sources(self) -> dict[str, tuple[str, ...]]:
        """Values that each node reads, through views, constants left out."""
        nodes = self.graph.nodes
        bases = {name: [self.graph.base(source) for source in node.inputs] for name, node in nodes.items()}
        return {name: tuple(one for one in found if nodes[one].place is not Place.CONSTANT) for name, found in bases.items()}

    @cached_property
    def _readers(self) -> dict[str, tuple[str, ...]]:
        return {name: tuple(self.graph.through_views(name)) for name in self.graph.nodes}

    def _bytes(self, names: Collection[str]) -> int:
        return _FP16 * sum(_size(shape) for name in names for shape in self.graph.nodes[name].shapes[:1])

    def _layers(self, node: Node) -> list[Layer]:
        if not node.shapes or node.part_of is not None:
            return []
        if node.is_product and node.macs:
            return [self._product(node)]
        shapes = [node.shapes[0], *(shape for source in node.inputs for shape in self.graph.nodes[source].shapes[:1])]
        largest = max(shapes, key=_size)
        columns = largest[-1] if largest else 1
        return [Layer("pointwise", 1, 1, _size(largest) // max(columns, 1), columns)]

    def _product(self, node: Node) -> Layer:
        """Its last two operands are what is multiplied; a convolution counts as the product that it is. Given is what comes into the
        graph, whichever program reads it."""
        out = node.shapes[0]
        m, n = (out[-2], out[-1]) if len(out) > 1 else (1, _size(out))
        size = max(_size(out), 1)
        names = node.inputs[-2:]
        given = [self.graph.nodes[self.graph.base(name)].place is Place.INPUT for name in names]
        sizes = [sum(_size(shape) for shape in self.graph.nodes[name].shapes[:1]) for name in names]
        if len(names) == 1:
            given, sizes = given * 2, sizes * 2
        held = [self.graph.base(name) in self.graph.constants for name in names]
        if any(held):
            outer = n if held[-1] else m
            return Layer("conv", 1, max(1, node.macs // size), outer, size // max(outer, 1))
        return product(m, n, node.macs // size, size // max(m * n, 1), sizes, given)


def _size(shape: Sequence[int]) -> int:
    return math.prod(shape)
