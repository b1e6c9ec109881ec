"""From a graph with symbols to one of a bucket's sizes that computes the same for every true size in it.

    traced graph (4, s, 16) ── rules, op by op ──► graph (4, 128, 16) with inputs more: true counts, random numbers
The function that the new graph computes equals the old one's wherever the result has true rows, whatever the inputs and weights are, so
its gradients do, too: autograd needs no rules of ours. Rows beyond the true size copy the last true one (axes.py), so that nothing
there is infinite or NaN that is not so in a true row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch import fx

from torchane.capture.sizes.axes import (
    Axis,
    Factor,
    State,
    Value,
    are_equal,
    axis_of,
    expression_of,
    joined,
    size_of,
    with_state,
)
from torchane.capture.sizes.reasons import NotPaddable
from torchane.capture.sizes.trace import Traced

aten = torch.ops.aten

Rule = Callable[["Rewriter", fx.Node, tuple[Any, ...], dict[str, Any]], Any]

#: Module and line of an op, and what a checkpoint says of it.
_KEPT_META = ("nn_module_stack", "stack_trace", "recompute", "ac_graph_id")
#: By op or by overload packet.
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return register


@dataclass(frozen=True)
class Count:
    """A tensor without axes that holds what an expression is for the true sizes."""

    expression: Any
    dtype: torch.dtype


@dataclass(frozen=True)
class Draw:
    """Random numbers that an op draws for a tensor of these axes, each a product of sizes, that lies in memory with these strides.
    args: the op's, None where it has that tensor, a tuple where it has its sizes."""

    op: Any
    sizes: tuple[tuple[Any, ...], ...]
    dtype: torch.dtype
    strides: tuple[Any, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass
class Padded:
    """A graph of one bucket. inputs: for each of Dynamo's inputs, its axes; added: its inputs after those.
    results: the values, sizes or constants that it gives, whose tensors are the new graph's results in order. written: positions of inputs
    that it writes to. values: what became of each value of the traced graph."""

    module: fx.GraphModule
    inputs: tuple[tuple[Axis, ...] | Any, ...]
    added: tuple[Count | Draw, ...]
    results: tuple[Any, ...] = ()
    written: frozenset[int] = field(default_factory=frozenset)
    values: Mapping[fx.Node, Any] = field(default_factory=dict)


class Rewriter:
    """Of one graph and bucket. Raises NotPaddable at the first op that cannot be proven right."""

    def __init__(self, traced: Traced, bucket: Mapping[sympy.Symbol, int]) -> None:
        self.traced = traced
        self.bucket = dict(bucket)
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Any] = {}
        self.source: fx.Node | None = None
        self.added: dict[fx.Node, Count | Draw] = {}
        self._made: dict[Any, fx.Node] = {}
        self._last: fx.Node | None = None

    def run(self) -> Padded:
        module = self.traced.module
        inputs: list[Any] = []
        for node in module.graph.nodes:
            self.source = node
            if node.op == "placeholder":
                inputs.append(self._input(node))
            elif node.op == "get_attr":
                self.values[node] = self._constant(node)
            elif node.op == "call_function":
                self._call(node)
        return self._finished(tuple(inputs))

    # ---- inputs and results

    def _input(self, node: fx.Node) -> Any:
        self._last = self.graph.placeholder(node.name)
        example = node.meta.get("val")
        if not isinstance(example, torch.Tensor):
            self.values[node] = expression_of(example)
            return self.values[node]
        axes = tuple(axis_of(size) for size in example.shape)
        self.values[node] = Value(self._last, axes, example.dtype)
        return axes

    def _constant(self, node: fx.Node) -> Value:
        constant = getattr(self.traced.module, str(node.target))
        if not isinstance(constant, torch.Tensor):
            raise NotPaddable.at(node, f"{node.target} is a graph of its own")
        return Value(self.graph.get_attr(str(node.target)), tuple(axis_of(size) for size in constant.shape), constant.dtype)

    def _finished(self, inputs: tuple[Any, ...]) -> Padded:
        given = [self.argument(item) for item in self.traced.module.graph.output_node().args[0]]
        count = len(given) - len(self.traced.written)
        placeholders = self.traced.module.graph.find_nodes(op="placeholder")
        for position, value in zip(self.traced.written, given[count:], strict=True):
            target = self.values[placeholders[position]]
            if target.padded or value.padded:
                raise NotPaddable(f"it writes to an input whose size varies ({placeholders[position].name})")
            self.graph.call_function(aten.copy_.default, (target.node, value.node))
        results = tuple(given[:count])
        self.graph.output(tuple(one.node for one in results if isinstance(one, Value)))
        return Padded(
            fx.GraphModule(self.traced.module, self.graph), inputs, tuple(self.added.values()), results,
            frozenset(self.traced.written), self.values,
        )  # fmt: skip

    def add(self, what: Count | Draw) -> fx.Node:
        """An input after all others."""
        assert self._last is not None
        with self.graph.inserting_after(self._last):
            self._last = self.graph.placeholder(f"{'true' if isinstance(what, Count) else 'drawn'}_{len(self.added)}")
        self.added[self._last] = what
        return self._last

    # ---- ops

    def _call(self, node: fx.Node) -> None:
        example = node.meta.get("val")
        if isinstance(example, torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool):
            self.values[node] = expression_of(example)
            return
        args = self.argument(node.args)
        kwargs = {name: self.argument(value) for name, value in node.kwargs.items()}
        found = RULES.get(node.target) or RULES.get(getattr(node.target, "overloadpacket", None)) or self._rule_of_kind(node)
        made = found(self, node, args, kwargs)
        for value, expected in zip(_listed(made), _listed(example), strict=True):
            if isinstance(value, Value) and expected is not None:
                self._check(node, value, expected)
        self.values[node] = made

    def _rule_of_kind(self, node: fx.Node) -> Rule:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            return RULES["draws"]
        return RULES["pointwise"] if torch.Tag.pointwise in tags else RULES["fixed"]

    def _check(self, node: fx.Node, value: Value, expected: Any) -> None:
        sizes = [expression_of(size) for size in expected.shape]
        is_right = len(sizes) == len(value.axes) and all(are_equal(size_of(axis), size) for axis, size in zip(value.axes, sizes, strict=True))
        if not is_right or value.dtype != expected.dtype:
            raise NotPaddable.at(node, f"{node.target} gives sizes that padding does not follow: {tuple(sizes)}")
        for axis in value.axes:
            for factor in axis:
                if factor.is_padded and not grows(factor.size):
                    raise NotPaddable.at(node, f"{node.target} gives a size, {factor.size}, that does not grow with those it is made of")

    def argument(self, arg: Any) -> Any:
        """Nodes as values, sizes as expressions."""
        if isinstance(arg, fx.Node):
            return self.values[arg]
        if isinstance(arg, list | tuple):
            return tuple(map(self.argument, arg))
        return arg

    def no(self, reason: str) -> NotPaddable:
        assert self.source is not None
        return NotPaddable.at(self.source, reason)

    def emit(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        given, named = fx.node.map_aggregate((args, kwargs), self._plain)
        node = self.graph.call_function(op, given, named)
        if self.source is not None:
            node.meta = {name: self.source.meta[name] for name in _KEPT_META if name in self.source.meta}
        return node

    def _plain(self, value: Any) -> Any:
        if isinstance(value, sympy.Basic):
            raise self.no(f"{self.source.target if self.source else ''} takes a size that varies as a number")
        return value.node if isinstance(value, Value) else value

    # ---- sizes, counts and masks

    def at(self, size: Any) -> int:
        """A size at the bucket's."""
        return size if isinstance(size, int) else int(sympy.sympify(size).xreplace(self.bucket))

    def shape(self, axes: Sequence[Axis]) -> tuple[int, ...]:
        return tuple(self.at(size_of(axis)) for axis in axes)

    def number(self, expression: Any, dtype: torch.dtype = torch.int64) -> fx.Node:
        """What the expression is for the true sizes: an input without axes."""
        count = Count(expression_of(expression), dtype)
        return self.once(count, lambda: self.add(count))

    def once(self, key: Any, make: Callable[[], fx.Node]) -> fx.Node:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def rows(self, size: Any) -> fx.Node:
        """0, 1, .. up to the last true row, which is repeated: (bucket,) int64."""
        made = lambda: self.emit(aten.minimum.default, self.emit(aten.arange.default, self.at(size)), self.number(size - 1))
        return self.once(("rows", size), made)

    def valid(self, axis: Axis) -> fx.Node:
        """Which rows of an axis are true: (size,) bool."""
        return self.once(("valid", tuple(factor.size for factor in axis)), lambda: self._valid(axis))

    def _valid(self, axis: Axis) -> fx.Node:
        shape = [self.at(factor.size) for factor in axis]
        found: fx.Node | None = None
        for i, factor in enumerate(axis):
            if factor.is_padded:
                true = self.emit(aten.lt.Tensor, self.emit(aten.arange.default, shape[i]), self.number(factor.size))
                if len(axis) > 1:
                    seen = self.emit(aten.reshape.default, true, [1] * i + [shape[i]] + [1] * (len(axis) - i - 1))
                    true = self.emit(aten.expand.default, seen, shape)
                found = true if found is None else self.emit(aten.logical_and.default, found, true)
        assert found is not None
        return found if len(axis) == 1 else self.emit(aten.reshape.default, found, [self.at(size_of(axis))])

    def mask(self, value: Value, position: int) -> fx.Node:
        """Of the true rows of one axis, to broadcast against the value: bool."""
        axis = value.axes[position]
        after = len(value.axes) - 1 - position % len(value.axes)
        if not after:
            return self.valid(axis)
        key = ("mask", tuple(factor.size for factor in axis), after)
        return self.once(key, lambda: self.emit(aten.reshape.default, self.valid(axis), [self.at(size_of(axis))] + [1] * after))

    def zeroed(self, value: Value, *positions: int) -> Value:
        """With zeros in the padded rows of these axes."""
        for position in positions:
            axis = value.axes[position]
            if all(factor.state is State.ZERO for factor in axis if factor.is_padded):
                continue
            mask = self.mask(value, position)
            if value.dtype is torch.bool:
                node = self.emit(aten.logical_and.default, value.node, mask)
            else:  # not a product: what is infinite in the last true row is so in its copies, and 0 times that is NaN
                node = self.emit(aten.where.ScalarOther, mask, value.node, 0)
            value = Value(node, value.axes, value.dtype).where(position, with_state(axis, State.ZERO))
        return value

    def filled(self, value: Value, position: int, number: float) -> Value:
        """With a number in the padded rows of an axis."""
        axis = value.axes[position]
        hidden = self.once(("hidden", self.mask(value, position)), lambda: self.emit(aten.logical_not.default, self.mask(value, position)))
        node = self.emit(aten.masked_fill.Scalar, value.node, hidden, number)
        return Value(node, value.axes, value.dtype).where(position, with_state(axis, State.LOOSE))

    def taken(self, value: Value, position: int, index: fx.Node, axis: Axis) -> Value:
        """The rows of an index, (n,) int64, which are the rows of `axis`."""
        node = self.emit(aten.index.Tensor, value.node, [None] * position + [index])
        return Value(node, value.axes, value.dtype).where(position, axis)

    def single(self, axis: Axis) -> Factor:
        """The one factor of an axis that varies."""
        if len(axis) != 1:
            raise self.no("it cuts through an axis that joins a size that varies with another")
        return axis[0]

    def joined(self, *operands: Sequence[Axis]) -> tuple[tuple[Axis, ...], tuple[tuple[State, ...], ...]]:
        found = joined(operands)
        if found is None:
            raise self.no(f"{self.source.target if self.source else ''}: rows of one operand are no rows of the other")
        return found


@lru_cache
def grows(size: sympy.Expr) -> bool:
    """It is larger for larger sizes: a sum of products of them, less a number at most. Else its bucket might be too small."""
    if not size.is_polynomial(*size.free_symbols):
        return False
    terms = sympy.Poly(size, *sorted(size.free_symbols, key=str)).terms()
    return all(factor.is_integer and factor > 0 for powers, factor in terms if any(powers))


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def uses_padding(values: Any) -> bool:
    """An argument, or one in it, has a padded axis, or is a size that varies."""
    if isinstance(values, Value):
        return bool(values.padded)
    if isinstance(values, tuple | list):
        return any(map(uses_padding, values))
    return isinstance(values, sympy.Basic)


class Like:
    """A node of another op that gives the same."""

    def __init__(self, target: Any, node: fx.Node) -> None:
        self.target, self.meta = target, node.meta
