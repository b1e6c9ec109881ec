"""Results that share memory with each other.

    y = mul(x, 2)                 program                   y = mul(x, 2)         program
    first = select(y, 1, 0)       program: a copy     ->    first = select(...)   a view of y, at the end
    return y, first                                         return y, first

What a graph returns as a view of something must be one: the caller may write into either, and asks for strides and offsets.
AOTAutograd makes such views itself only where gradients are wanted. A program may still compute the same slice for its own
use: what leaves is a call of its own. `as_strided` reads memory, not values, so what it reads of must be a view as well.
"""

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from torchane.capture.graph import VIEWS
from torchane.capture.torch_private import OpOverload

aten = torch.ops.aten


def keep_views_of_results(graph: fx.Graph, kept: Collection[int]) -> frozenset[fx.Node]:
    """Rewrites the graph in place: views that leave, down to what they are views of, are calls that nothing else reads. Gives
    these calls.

    kept: output positions that are saved for the backward, and known by their names.
    """
    output = graph.output_node()
    rewriter = _Rewriter(graph)
    for node in graph.find_nodes(op="call_function", target=aten.as_strided.default):
        node.args = (rewriter.own_view(node.args[0], node), *node.args[1:])
    results = output.args[0]
    output.args = (type(results)(r if i in kept else rewriter.own_view(r, output) for i, r in enumerate(results)),)
    rewriter.erase_unread()
    return frozenset(rewriter.made.values())


class _Rewriter:
    def __init__(self, graph: fx.Graph):
        self.graph = graph
        self.made: dict[fx.Node, fx.Node] = {}

    def own_view(self, node: Any, reader: fx.Node) -> Any:
        """The same view for this reader alone; the node itself where it is derived from its base wherever it is read."""
        chain = _chain(node)
        if all(link.target in VIEWS for link in chain):
            return node
        for link in reversed(chain):
            if link not in self.made:
                with self.graph.inserting_after(link):
                    self.made[link] = self.graph.node_copy(link, lambda source: self.made.get(source, source))
        return self.made[chain[0]]

    def erase_unread(self) -> None:
        for link in reversed(list(self.graph.nodes)):
            if link in self.made and not link.users:
                self.graph.erase_node(link)


def _chain(node: Any) -> list[fx.Node]:
    """A view, what it is a view of, and so on; without the value that holds the numbers."""
    found: list[fx.Node] = []
    while isinstance(node, fx.Node) and node.op == "call_function" and _is_view(node):
        found.append(node)
        node = node.args[0]
    return found


def _is_view(node: fx.Node) -> bool:
    """It gives a view of its first argument, or one of several that an op gave."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and node.args[0].op == "call_function" and _is_view(node.args[0])
    if not isinstance(node.target, OpOverload):
        return False
    infos = [result.alias_info for result in node.target._schema.returns]
    return any(info is not None and not info.is_write for info in infos)
