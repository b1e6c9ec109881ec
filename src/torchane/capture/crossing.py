"""Which values cross the border between programs and the host.

Values cross only where they must: what another program, the host or the caller reads, and what is kept for the backward.
"""

from collections.abc import Collection
from typing import Any

from torch import fx

from torchane.capture.graph import Cut
from torchane.capture.region import Ports
from torchane.plan.step_graph import Place


class Crossing:
    """Of a graph that was cut. kept: output positions that are saved for the backward."""

    def __init__(self, cut: Cut, results: list[Any], kept: Collection[int]):
        self.cut = cut
        self.kept = {results[i] for i in kept if self._is_of_program(results[i])}
        self.results = {result for result in results if isinstance(result, fx.Node)}
        self.given_back = {result for i, result in enumerate(results) if isinstance(result, fx.Node) and i not in kept}

    def _is_of_program(self, result: Any) -> bool:
        """A saved value stays in a surface if a program computed it."""
        return isinstance(result, fx.Node) and self.cut.place[self.cut.base(result)] is Place.PROGRAM

    def ports(self, index: int) -> Ports:
        region = self.cut.regions[index]
        inside = set(region.nodes)
        inputs: dict[fx.Node, None] = {}
        for node in region.nodes:
            for arg in node.all_input_nodes:
                base = self.cut.base(arg)
                if base not in inside and self.cut.place[base] is not Place.CONSTANT:
                    inputs[base] = None
        outputs: dict[fx.Node, None] = {}
        own = inside - region.again
        for node in region.nodes:
            if node in own and self._leaves(node, node):
                outputs[node] = None
        for node in self.kept:
            if self.cut.base(node) in own:
                outputs[node] = None
        order = self.cut.step.order
        return Ports(tuple(inputs), tuple(sorted(outputs, key=lambda node: order[node.name])))

    def _leaves(self, node: fx.Node, base: fx.Node) -> bool:
        """Somebody who does not compute `base` reads the node, directly or through views of it."""
        for user in node.users:
            place = self.cut.place.get(user)
            if place is Place.VIEW:
                if self._leaves(user, base):
                    return True
            elif place is Place.PROGRAM:
                if self.cut.is_read_elsewhere(base, user):
                    return True
            elif place is Place.HOST or self.is_users_output(node):
                return True
        return False

    def is_users_output(self, node: fx.Node) -> bool:
        return node in self.given_back or (node not in self.kept and node in self.results)

    def host_reads(self, node: fx.Node) -> bool:
        if self.is_users_output(node):
            return True
        for user in node.users:
            place = self.cut.place.get(user)
            if place is Place.HOST or (place is Place.VIEW and user not in self.kept and self.host_reads(user)):
                return True
            if place is Place.VIEW and user in self.kept and any(self.cut.place.get(u) is Place.HOST for u in user.users):
                return True
        return False
