"""Products too wide for one program, cut into blocks along a parameter's axis.

    scores = x @ W.T    ->   part_i = x @ W_i.T     scores = the parts side by side
    dx     = g @ W      ->   dx = g_0 @ W_0 + g_1 @ W_1 + ...
    dW     = g.T @ x    ->   part_i = g_i.T @ x     dW = the parts one below the other

A language model's head has as many rows as its vocabulary has tokens (Qwen3: 151,936). Engines take fewer, and sum over
fewer still (`Chip.widest_matrix`). The rewriting is from ATen to ATen, before anything is placed. Blocks of a parameter are
views on the host, each staged as a parameter of its own, under the same name in the forward and in the backward; what
is put together leaves the surfaces straight into its place (`plan.Part`).
"""

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

import torchane.capture.vocabulary_ops  # noqa: F401  it defines four of the products
from torchane.capture.graph import SLICE

aten = torch.ops.aten

BLOCK = "a block of what is too wide for one program: a view on the host"
WHOLE = "put together from blocks: each leaves its surface straight into its place"

#: Blocks begin at multiples of this, so that their rows meet what ports ask for.
_MULTIPLE = 32

#: What is computed of a slice of a vocabulary, and which of its arguments is the slice; None: its scores are read in place of it.
SLICED = {
    torch.ops.torchane.vocabulary_scores.default: 1, torch.ops.torchane.vocabulary_kept_scores.default: 1,
    torch.ops.torchane.vocabulary_gradient.default: 2, torch.ops.torchane.vocabulary_gradient_of.default: None,
}  # fmt: skip

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


Shape = tuple[int, int]


@dataclass
class Blocks:
    """What was cut. shapes: of the parameters; reasons: why the nodes that are views or put together are on the host; weights: the
    names of the blocks of parameters; gradients: parts of gradients, made of kept scores, that lie as their parameter does."""

    shapes: frozenset[Shape] = frozenset()
    wholes: dict[fx.Node, Whole] = field(default_factory=dict)
    reasons: dict[fx.Node, str] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)
    gradients: set[fx.Node] = field(default_factory=set)


def cut_wide_products(graph: fx.Graph, weights: Collection[str], shapes: Collection[Shape], widest: int) -> Blocks:
    """Rewrites the graph in place.

    weights: placeholders that hold parameters. shapes: of parameters that another graph of the same model was cut for, whose
    gradients may be computed here. widest: the longest axis that need not be cut.
    """
    widest -= widest % _MULTIPLE
    found = frozenset(shapes) | _wide_shapes(graph, weights, widest)
    cutter = _Cutter(graph, frozenset(weights), widest, Blocks(found))
    for node in list(graph.nodes) if found else ():
        axis = cutter.axis_to_cut(node)
        if axis is not None:
            cutter.cut(node, axis)
    return cutter.blocks


def adopt_slices(graph: fx.Graph, weights: Collection[str], blocks: Blocks) -> None:
    """Slices of parameters that products of a vocabulary read (vocabulary.py) become blocks, as if they had been cut here, and so do the
    slices of their gradients. What computes with one slice is a layer of its own: equal ones share a program."""
    products = [node for node in graph.nodes if node.target in SLICED]
    numbers: dict[fx.Node, int] = {}
    of_kept: set[fx.Node] = set()
    for product in products:
        readers, place = _readers(product), SLICED[product.target]
        block = _slice_among(readers, weights) if place is None else product.args[place]
        if block is not None and block.name not in blocks.weights:
            source, axis, start, *_ = *block.args, 0, 0
            assert block.target is aten.slice.Tensor and axis == 0 and source.name in weights, "a slice of a vocabulary is rows of a parameter"
            block._rename(f"{source.name}_rows_{start}")
            blocks.reasons[block] = BLOCK
            blocks.weights.add(block.name)
        if place is None:
            of_kept.update(readers)
        for node in (product, *readers):
            node.meta[SLICE] = numbers.setdefault(block or product, len(numbers))
    for node in graph.find_nodes(op="call_function", target=aten.cat.default):
        parts, *axis = node.args
        if not any(axis) and all(part.target is aten.mm.default and SLICE in part.meta for part in parts):
            blocks.wholes[node] = Whole(0, tuple(parts))
            blocks.reasons[node] = WHOLE
            blocks.gradients.update(of_kept.intersection(parts))


def _slice_among(readers: Sequence[fx.Node], weights: Collection[str]) -> fx.Node | None:
    """The rows of a parameter that one of these products reads beside the gradient in the scores; None where none wants them."""
    factors = (reader.args[1] for reader in readers if reader.target is aten.mm.default)
    return next((one for one in factors if one.target is aten.slice.Tensor and one.args[0].name in weights), None)


def _readers(node: fx.Node) -> list[fx.Node]:
    """What reads a product, through views: its results one by one, or products with it."""
    found = []
    for user in node.users:
        if user.target in (aten.t.default, aten.transpose.int, aten.permute.default, *_SAME_AXES):
            found += [user, *_readers(user)]
        elif user.target in (aten.mm.default, operator.getitem):
            found.append(user)
    return found


def _wide_shapes(graph: fx.Graph, weights: Collection[str], widest: int) -> frozenset[Shape]:
    """Of parameters that products read and that have an axis too wide for a program."""
    origins = (_origin(factor)[0] for node in graph.nodes if node.target in _PRODUCTS for factor in node.args[-2:])
    return frozenset(
        tuple(origin.meta["val"].shape)
        for origin in origins
        if origin.op == "placeholder" and origin.name in weights and max(origin.meta["val"].shape) > widest
    )


def _origin(node: fx.Node) -> tuple[fx.Node, bool]:
    """What a matrix is a view or a copy of, and whether the axes have changed places."""
    is_swapped = False
    while (source := _turned(node)) is not None:
        node, is_swapped = source[0], is_swapped != source[1]
    return node, is_swapped


def _turned(node: fx.Node) -> tuple[fx.Node, bool] | None:
    """One step of `_origin`."""
    if node.op != "call_function" or not node.all_input_nodes:
        return None
    source = node.all_input_nodes[0]
    if node.target in _SAME_AXES:
        return source, False
    if node.meta["val"].dim() != 2:
        return None
    is_swap = (
        node.target is aten.t.default
        or (node.target is aten.transpose.int and {axis % 2 for axis in node.args[1:]} == {0, 1})
        or (node.target is aten.permute.default and [axis % 2 for axis in node.args[1]] == [1, 0])
    )
    return (source, True) if is_swap else None


class _Cutter:
    def __init__(self, graph: fx.Graph, weights: frozenset[str], widest: int, blocks: Blocks):
        self.graph = graph
        self.weights = weights
        self.widest = widest
        self.blocks = blocks
        self.made: dict[tuple[fx.Node, int, int], fx.Node] = {}

    def axis_to_cut(self, node: fx.Node) -> str | None:
        """Which axis of a product (M, K) @ (K, N) is a parameter's that is cut, or "n" for a sum over the rows of (M, N)."""
        shapes = self.blocks.shapes
        if node.target is aten.sum.dim_IntList:  # the gradient of a bias
            source = node.args[0].meta["val"]
            is_over_rows = source.dim() == 2 and [axis % 2 for axis in node.args[1] or (0, 1)] == [0]
            return "n" if is_over_rows and any(source.shape[1] == rows > self.widest for rows, _ in shapes) else None
        if node.target not in _PRODUCTS:
            return None
        first, second = (self._wide_axis(factor) for factor in node.args[-2:])
        if first is not None or second is not None:
            return ("m", "k")[first] if second is None else ("k", "n")[second]  # type: ignore[index]
        if any(_origin(factor)[0].name in self.weights for factor in node.args[-2:]):
            return None
        rows, columns = node.meta["val"].shape  # the gradient of a parameter, or its transpose
        if (rows, columns) in shapes:
            return "m" if rows > self.widest else "n"
        if (columns, rows) in shapes:
            return "n" if columns > self.widest else "m"
        return None

    def _wide_axis(self, factor: fx.Node) -> int | None:
        """The axis of a factor that is cut, where it is a parameter, or one that was saved in another dtype (autocast)."""
        origin, is_swapped = _origin(factor)
        value = origin.meta["val"]
        is_saved = origin.op == "placeholder" and value.dtype in (torch.bfloat16, torch.float16)
        if (origin.name not in self.weights and not is_saved) or tuple(value.shape) not in self.blocks.shapes:
            return None
        return int((value.shape[0] <= self.widest) != is_swapped)

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
