"""Products too wide for one program, cut into blocks along a parameter's axis.

    scores = x @ W.T    ->   part_i = x @ W_i.T     scores = the parts side by side
    dx     = g @ W      ->   dx = g_0 @ W_0 + g_1 @ W_1 + ...
    dW     = g.T @ x    ->   part_i = g_i.T @ x     dW = the parts one below the other

A language model's head has as many rows as its vocabulary has tokens (Qwen3: 151,936). Engines take fewer, and sum over
fewer still (`Chip.widest_matrix`). The rewriting is from ATen to ATen, before anything is placed. Blocks of a parameter are
views on the host, each staged as a parameter of its own, under the same name in the forward and in the backward; what
is put together leaves the surfaces straight into its place (`plan.Part`).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

BLOCK = "a block of what is too wide for one program: a view on the host"
WHOLE = "put together from blocks: each leaves its surface straight into its place"

#: Blocks begin at multiples of this, so that their rows meet what ports ask for.
_MULTIPLE = 32

_PRODUCTS = (aten.mm.default, aten.addmm.default)
#: A block of the result is the result of a block, on the same axis.
_SAME_AXES = frozenset({aten.detach.default, aten.alias.default, aten._to_copy.default})


@dataclass(frozen=True)
class Whole:
    """What is put together: its parts along `axis`, in order."""

    axis: int
    parts: tuple[fx.Node, ...]

    def starts(self) -> tuple[int, ...]:
        """Where each part begins."""
        sizes = [part.meta["val"].shape[self.axis] for part in self.parts]
        return tuple(sum(sizes[:i]) for i in range(len(sizes)))


@dataclass
class Blocks:
    """What was cut. sizes: of the axes; reasons: why the nodes that are views or put together are on the host; weights: the names
    of the blocks of parameters."""

    sizes: frozenset[int] = frozenset()
    wholes: dict[fx.Node, Whole] = field(default_factory=dict)
    reasons: dict[fx.Node, str] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)


def cut_wide_products(graph: fx.Graph, weights: Collection[str], sizes: Collection[int], widest: int) -> Blocks:
    """Rewrites the graph in place.

    weights: placeholders that hold parameters. sizes: axes that are known to be cut, from another graph of the same
    model. widest: the longest axis that need not be cut.
    """
    found = frozenset(sizes) | _wide_sizes(graph, weights, widest)
    cutter = _Cutter(graph, frozenset(weights), widest, Blocks(found))
    for node in list(graph.nodes) if found else ():
        axis = _axis_to_cut(node, found)
        if axis is not None:
            cutter.cut(node, axis)
    return cutter.blocks


def _wide_sizes(graph: fx.Graph, weights: Collection[str], widest: int) -> frozenset[int]:
    """The axes, too wide for a program, of parameters that products read."""
    origins = (_origin(factor) for node in graph.nodes if node.target in _PRODUCTS for factor in node.args[-2:])
    return frozenset(
        size
        for origin in origins
        if origin.op == "placeholder" and origin.name in weights and origin.meta["val"].dim() == 2
        for size in origin.meta["val"].shape
        if size > widest
    )


def _origin(node: fx.Node) -> fx.Node:
    while (source := _turned(node)) is not None:
        node = source[0]
    return node


def _turned(node: fx.Node) -> tuple[fx.Node, bool] | None:
    """What a node of two axes is a view or a copy of, and whether the axes have changed places."""
    if node.op != "call_function" or not node.all_input_nodes or node.meta["val"].dim() != 2:
        return None
    source = node.all_input_nodes[0]
    if node.target in _SAME_AXES:
        return source, False
    is_swap = (
        node.target is aten.t.default
        or (node.target is aten.transpose.int and {axis % 2 for axis in node.args[1:]} == {0, 1})
        or (node.target is aten.permute.default and [axis % 2 for axis in node.args[1]] == [1, 0])
    )
    return (source, True) if is_swap else None


def _axis_to_cut(node: fx.Node, sizes: Collection[int]) -> str | None:
    """Which axis of a product (M, K) @ (K, N) is one of `sizes`, or "n" for a sum over the rows of (M, N)."""
    if node.target in _PRODUCTS:
        first, second = (factor.meta["val"].shape for factor in node.args[-2:])
        if second[1] in sizes:
            return "n"
        if first[1] in sizes:
            return "k"
        return "m" if first[0] in sizes else None
    if node.target is aten.sum.dim_IntList and node.args[0].meta["val"].dim() == 2:
        is_over_rows = [axis % 2 for axis in node.args[1] or (0, 1)] == [0]
        return "n" if is_over_rows and node.args[0].meta["val"].shape[1] in sizes else None
    return None


class _Cutter:
    def __init__(self, graph: fx.Graph, weights: frozenset[str], widest: int, blocks: Blocks):
        self.graph = graph
        self.weights = weights
        self.widest = widest
        self.blocks = blocks
        self.made: dict[tuple[fx.Node, int, int], fx.Node] = {}

    def cut(self, node: fx.Node, axis: str) -> None:
        with self.graph.inserting_before(node):
            if node.target is aten.sum.dim_IntList:
                result = self._sums(node)
            elif axis == "k":
                result = self._summed(node)
            else:
                result = self._side_by_side(node, 1 if axis == "n" else 0)
        node.replace_all_uses_with(result)
        name = node.name
        self._erase_unread(node)
        result.name = name  # the forward's outputs and the backward's inputs are known by it

    def _side_by_side(self, node: fx.Node, axis: int) -> fx.Node:
        *added, first, second = node.args
        parts = []
        for start, end in self._borders(node.meta["val"].shape[axis]):
            factors = (self.block(first, 0, start, end), second) if axis == 0 else (first, self.block(second, 1, start, end))
            rest = [self._block_of_sum(one, axis - 2, start, end) for one in added]
            parts.append(self._call(node, node.target, (*rest, *factors), node.kwargs))
        return self._whole(node, axis, parts)

    def _block_of_sum(self, node: fx.Node, axis: int, start: int, end: int) -> fx.Node:
        """Of what is added to a product, broadcast; the axis counts from the end."""
        shape = node.meta["val"].shape
        return node if len(shape) < -axis or shape[axis] == 1 else self.block(node, axis % len(shape), start, end)

    def _summed(self, node: fx.Node) -> fx.Node:
        *added, first, second = node.args
        total: fx.Node | None = None
        for start, end in self._borders(first.meta["val"].shape[1]):
            factors = (self.block(first, 1, start, end), self.block(second, 0, start, end))
            if total is None:
                total = self._call(node, node.target, (*added, *factors), node.kwargs)
            else:
                alpha = {name: value for name, value in node.kwargs.items() if name == "alpha"}
                total = self._call(node, aten.addmm.default, (total, *factors), alpha)
        assert total is not None, "an axis that is cut has blocks"
        return total

    def _sums(self, node: fx.Node) -> fx.Node:
        source, *rest = node.args
        borders = self._borders(source.meta["val"].shape[1])
        parts = [self._call(node, node.target, (self.block(source, 1, *border), *rest), node.kwargs) for border in borders]
        return self._whole(node, node.meta["val"].dim() - 1, parts)

    def block(self, node: fx.Node, axis: int, start: int, end: int) -> fx.Node:
        """Entries start to end of an axis: of the parameter or value itself, under whatever moves its axes."""
        key = (node, axis, start)
        if key not in self.made:
            turned = _turned(node)
            if turned is not None:
                source, is_swapped = turned
                part = self.block(source, 1 - axis if is_swapped else axis, start, end)
                self.made[key] = self._call(node, node.target, (part, *node.args[1:]), node.kwargs)
            else:
                name = f"{node.name}_{('rows', 'columns')[axis]}_{start}" if node.name in self.weights else None
                part = self._call(node, aten.slice.Tensor, (node, axis, start, end), name=name)
                self.made[key] = part
                self.blocks.reasons[part] = BLOCK
                if name is not None:
                    assert part.name == name, f"a node is called {name} already"
                    self.blocks.weights.add(name)
        return self.made[key]

    def _whole(self, node: fx.Node, axis: int, parts: list[fx.Node]) -> fx.Node:
        whole = self._call(node, aten.cat.default, (parts, axis))
        self.blocks.wholes[whole] = Whole(axis, tuple(parts))
        self.blocks.reasons[whole] = WHOLE
        return whole

    def _borders(self, size: int) -> list[tuple[int, int]]:
        count = -(-size // self.widest)
        step = -(-size // (count * _MULTIPLE)) * _MULTIPLE
        return [(start, min(start + step, size)) for start in range(0, size, step)]

    def _call(
        self, like: fx.Node, target: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, name: str | None = None
    ) -> fx.Node:
        """A new node, known by the module and line of `like`."""
        node = self.graph.create_node("call_function", target, args, dict(kwargs or {}), name=name)
        values, keywords = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        node.meta = {**like.meta, "val": target(*values, **keywords)}
        return node

    def _erase_unread(self, node: fx.Node) -> None:
        sources = node.all_input_nodes
        self.graph.erase_node(node)
        for source in sources:
            if not source.users and source.op == "call_function":
                self._erase_unread(source)
