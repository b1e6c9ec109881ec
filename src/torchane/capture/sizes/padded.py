"""A call of a graph whose sizes vary, with the program of its bucket.

    inputs (4, 100) ── filled up with their last rows ──► (4, 128) ── graph of the bucket ──► (4, 128, 16) ── cut ──► (4, 100, 16)
Filling up and cutting are ops of torch outside of the graph, which autograd differentiates. What the graph must know of the true sizes
comes in as tensors without axes; random numbers are drawn for the true sizes, as eager would draw them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from torchane.capture.sizes import lookups, pointwise, products, shaping, sorting  # noqa: F401  (they register their rules)
from torchane.capture.sizes.axes import Value, is_padded, size_of
from torchane.capture.sizes.reasons import NotPaddable
from torchane.capture.sizes.rewrite import Count, Draw, Padded, Rewriter
from torchane.capture.sizes.shared import View, views_of
from torchane.capture.sizes.trace import Traced
from torchane.capture.torch_private import unset_fake_temporarily

_VIEWS = frozenset({"reshape", "view", "permute", "transpose", "t", "unsqueeze", "squeeze", "slice", "select", "expand", "alias", "detach"})


class Bucket:
    """The graph of one bucket. bucket: sizes by symbol."""

    def __init__(self, traced: Traced, bucket: Mapping[sympy.Symbol, int]) -> None:
        """Raises NotPaddable."""
        self.sizes = dict(bucket)
        with unset_fake_temporarily():
            self.padded: Padded = Rewriter(traced, bucket).run()
        self.module: fx.GraphModule = self.padded.module
        traced_results = traced.module.graph.output_node().args[0]
        results = [getattr(one, "meta", {}).get("val") for one in traced_results]
        self._strides = [one.stride() if isinstance(one, torch.Tensor) else None for one in results]
        padded = [isinstance(one, Value) and bool(one.padded) for one in self.padded.results]
        self._views = views_of(traced_results[: len(padded)], padded)
        self._placeholders = {node: i for i, node in enumerate(self.module.graph.find_nodes(op="placeholder"))}
        self._check_results()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs beside Dynamo's."""
        return tuple(f"the true size {one.expression}" if isinstance(one, Count) else "random numbers" for one in self.padded.added)

    @property
    def fixed(self) -> frozenset[int]:
        """Which of those hold no numbers that a program computes with."""
        return frozenset(i for i, one in enumerate(self.padded.added) if not one.dtype.is_floating_point)

    def _check_results(self) -> None:
        for one in self.padded.results:
            if isinstance(one, Value):
                node = one.node
                while node.op == "call_function" and getattr(node.target, "overloadpacket", node.target).__name__ in _VIEWS:
                    node = node.args[0]  # type: ignore[assignment]
                if node.op == "placeholder" and node is not one.node and self._axes_of(node):
                    raise NotPaddable(f"a result is a view of the input {node.name}, whose size varies")

    def _axes_of(self, node: fx.Node) -> bool:
        axes = self.padded.inputs[self._placeholders[node]] if self._placeholders[node] < len(self.padded.inputs) else ()
        return isinstance(axes, tuple) and any(map(is_padded, axes))

    # ---- a call

    def given(self, args: Sequence[Any], true: Mapping[sympy.Symbol, int]) -> list[Any]:
        """The graph's inputs for a call with these."""
        made = [self._filled(arg, axes) for arg, axes in zip(args, self.padded.inputs, strict=True)]
        for one in self.padded.added:
            made.append(torch.tensor(_at(one.expression, true), dtype=one.dtype) if isinstance(one, Count) else self._drawn(one, true))
        return made

    def _filled(self, arg: Any, axes: Any) -> Any:
        if not isinstance(arg, torch.Tensor):
            return _at(axes, self.sizes) if isinstance(axes, int | sympy.Basic) else arg
        for position, axis in enumerate(axes):
            if is_padded(axis):
                arg = _grown(arg, position, _at(size_of(axis), self.sizes))
        return arg

    def _drawn(self, draw: Draw, true: Mapping[sympy.Symbol, int]) -> torch.Tensor:
        """In the order in which the tensor lies in memory, as eager draws; rows beyond copy the last true one."""
        shape = [_at(_product(axis), true) for axis in draw.sizes]
        steps = [_at(step, true) for step in draw.strides]
        order = sorted(range(len(shape)), key=lambda i: -steps[i])
        lying = [shape[i] for i in order]
        args = [lying if isinstance(arg, tuple) else torch.empty(lying, dtype=draw.dtype) if arg is None else _at(arg, true) for arg in draw.args]
        with torch.no_grad():
            made = draw.op(*args, **draw.kwargs)
            made = made.permute([order.index(i) for i in range(len(order))])
            made = made.reshape([_at(size, true) for axis in draw.sizes for size in axis])
            for position, size in enumerate(size for axis in draw.sizes for size in axis):
                made = _grown(made, position, _at(size, self.sizes))
            return made.reshape([_at(_product(axis), self.sizes) for axis in draw.sizes])

    def results(self, made: Sequence[Any], args: Sequence[Any], true: Mapping[sympy.Symbol, int]) -> tuple[Any, ...]:
        """What the call gives. made: the graph's results."""
        tensors = iter(made)
        found = []
        for one, strides in zip(self.padded.results, self._strides, strict=True):
            if isinstance(one, Value):
                tensor = next(tensors)
                place = self._placeholders.get(one.node)
                found.append(args[place] if place is not None and place < len(args) else self._cut(tensor, one, strides, true))
            else:
                found.append(_at(one, true) if isinstance(one, sympy.Basic) else one)
        for i, view in sorted(self._views.items(), key=lambda item: _depth(self._views, item[0])):
            found[i] = view.of(found[view.source], true)
        return tuple(found)

    def _cut(self, tensor: torch.Tensor, value: Value, strides: Any, true: Mapping[sympy.Symbol, int]) -> torch.Tensor:
        if not value.padded:
            return tensor
        if any(len(axis) > 1 and is_padded(axis) for axis in value.axes):
            tensor = tensor.reshape([_at(factor.size, self.sizes) for axis in value.axes for factor in axis])
            factors = [factor for axis in value.axes for factor in axis]
        else:
            factors = [axis[0] if is_padded(axis) else None for axis in value.axes]  # type: ignore[misc]
        for position, factor in enumerate(factors):
            if factor is not None and factor.is_padded:
                tensor = tensor.narrow(position, 0, _at(factor.size, true))
        tensor = tensor.reshape([_at(size_of(axis), true) for axis in value.axes])
        steps = [_at(step.node.expr if isinstance(step, torch.SymInt) else step, true) for step in strides]
        order = sorted(range(len(steps)), key=lambda i: (-steps[i], i))
        return tensor.permute(order).contiguous().permute([order.index(i) for i in range(len(order))])


def _depth(views: Mapping[int, View], position: int) -> int:
    """How many views a result is away from one that is none."""
    return 1 + _depth(views, views[position].source) if position in views else 0


def _grown(tensor: torch.Tensor, position: int, size: int) -> torch.Tensor:
    """With copies of its last row up to this size."""
    missing = size - tensor.shape[position]
    if not missing:
        return tensor
    last = tensor.narrow(position, tensor.shape[position] - 1, 1)
    shape = list(tensor.shape)
    shape[position] = missing
    return torch.cat([tensor, last.expand(shape)], position)


def _product(sizes: Sequence[Any]) -> Any:
    product: Any = 1
    for size in sizes:
        product = product * size
    return product


def _at(expression: Any, sizes: Mapping[sympy.Symbol, int]) -> Any:
    if not isinstance(expression, sympy.Basic):
        return expression
    value = sympy.sympify(expression.xreplace(dict(sizes)))
    return int(value) if value.is_integer else float(value)

