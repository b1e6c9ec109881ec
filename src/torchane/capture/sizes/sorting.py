"""Rules of ops that put rows in order."""

import operator
from typing import Any

import torch
from torch import fx

from torchane.capture.sizes.axes import Axis, Factor, State, Value, axis_of, is_padded
from torchane.capture.sizes.rewrite import Rewriter, rule
from torchane.capture.sizes.shaping import rows_of

aten = torch.ops.aten


@rule(aten.sort)
def sort(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Value, Value]:
    x, given = args[0], args[1:]
    if node.target is aten.sort.stable:  # (x, stable=, dim=, descending=)
        position, descending = kwargs.get("dim", given[0] if given else -1), kwargs.get("descending", given[1] if len(given) > 1 else False)
    else:
        position, descending = (*given, *(-1, False)[len(given) :])[:2]
    return _sorted(r, x, position, descending)


@rule(aten.topk)
def topk(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Value, Value]:
    x, count, position, largest, _ = (*args, *(-1, True, True)[len(args) - 2 :])
    position %= max(len(x.axes), 1)
    if not x.axes or not is_padded(x.axes[position]):
        return _of_rows(r, node, x, position, axis_of(count), r.emit(node.target, *args, **kwargs))
    if not isinstance(count, int):
        raise r.no("topk of a number that varies")
    return tuple(rows_of(r, one, position, 0, count, 1) for one in _sorted(r, x, position, largest))  # type: ignore[return-value]


def _of_rows(r: Rewriter, node: fx.Node, x: Value, position: int, axis: Axis, made: fx.Node) -> tuple[Value, Value]:
    """Values and places along an axis of fixed size. What lies along others is as it was, but for places of zeros."""
    values = Value(r.emit(operator.getitem, made, 0), x.axes, x.dtype)
    places = Value(r.emit(operator.getitem, made, 1), tuple(_loose(one) for one in x.axes), torch.int64)
    return tuple(one.where(position, axis) if x.axes else one for one in (values, places))  # type: ignore[return-value]


def _loose(axis: Axis) -> Axis:
    return tuple(f if not f.is_padded or f.state is State.EDGE else Factor(f.size, State.LOOSE) for f in axis)


def _sorted(r: Rewriter, x: Value, position: int, descending: bool) -> tuple[Value, Value]:
    """Rows that only fill up are sorted, then moved behind: whatever they hold, they are among no true ones."""
    position %= max(len(x.axes), 1)
    if not x.axes or not is_padded(x.axes[position]):
        made = r.emit(aten.sort.stable, x.node, stable=True, dim=position, descending=descending)
        return _of_rows(r, r.source, x, position, x.axes[position] if x.axes else (), made)  # type: ignore[arg-type]
    size = r.single(x.axes[position]).size
    order = r.emit(operator.getitem, r.emit(aten.sort.stable, x.node, stable=True, dim=position, descending=descending), 1)
    is_beyond = r.emit(aten.index.Tensor, r.emit(aten.logical_not.default, r.valid(x.axes[position])), [order])
    behind = r.emit(aten._to_copy.default, is_beyond, dtype=torch.uint8)
    second = r.emit(operator.getitem, r.emit(aten.sort.stable, behind, stable=True, dim=position, descending=False), 1)
    axes = tuple(_loose(one) for one in x.axes)
    places = Value(r.emit(aten.gather.default, order, position, second), axes, torch.int64)
    places = r.taken(places, position, r.rows(size), axis_of(size))
    values = Value(r.emit(aten.gather.default, x.node, position, places.node), axes, x.dtype).where(position, axis_of(size))
    return values, places
