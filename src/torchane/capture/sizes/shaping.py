"""Rules of ops that move, cut and join."""

import operator
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
    is_padded,
    regrouped,
    size_of,
    with_state,
)
from torchane.capture.sizes.rewrite import Rewriter, rule

aten = torch.ops.aten


@rule(operator.getitem)
def getitem(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0][args[1]]


@rule(aten.view, aten._unsafe_view, aten.reshape)
def view(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x = args[0]
    axes = regrouped(x.axes, list(node.meta["val"].shape))
    if axes is None:
        raise r.no("a reshape mixes a size that varies with others")
    return Value(r.emit(aten.reshape.default, x.node, r.shape(axes)), axes, x.dtype)


@rule(aten.expand)
def expand(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x = args[0]
    shape = node.meta["val"].shape
    new = len(shape) - len(x.axes)
    axes = tuple(axis_of(size) if i < new or not x.axes[i - new] else x.axes[i - new] for i, size in enumerate(shape))
    return Value(r.emit(aten.expand.default, x.node, r.shape(axes)), axes, x.dtype)


@rule(aten.permute)
def permute(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, order = args
    return Value(r.emit(node.target, x.node, list(order)), tuple(x.axes[i] for i in order), x.dtype)


@rule(aten.transpose, aten.t)
def transpose(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x = args[0]
    a, b = args[1:] or (0, 1)
    axes = list(x.axes)
    if len(axes) > 1:
        axes[a], axes[b] = axes[b], axes[a]
    return Value(r.emit(node.target, x.node, *args[1:]), tuple(axes), x.dtype)


@rule(aten.unsqueeze)
def unsqueeze(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, position = args
    position %= len(x.axes) + 1
    return Value(r.emit(node.target, x.node, position), (*x.axes[:position], (), *x.axes[position:]), x.dtype)


@rule(aten.squeeze)
def squeeze(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x = args[0]
    asked = range(len(x.axes)) if len(args) == 1 else args[1] if isinstance(args[1], tuple) else (args[1],)
    gone = {position % max(len(x.axes), 1) for position in asked if x.axes and not x.axes[position]}
    axes = tuple(axis for i, axis in enumerate(x.axes) if i not in gone)
    return Value(r.emit(aten.reshape.default, x.node, r.shape(axes)), axes, x.dtype)


@rule(aten.repeat)
def repeat(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, times = args
    new = len(times) - len(x.axes)
    axes: list[Axis] = []
    for i, count in enumerate(times):
        axis = x.axes[i - new] if i >= new else ()
        if are_equal(count, 1):
            axes.append(axis)
        elif not axis:
            axes.append(axis_of(count))
        elif not is_padded(axis) and isinstance(count, int):
            axes.append(axis_of(size_of(axis) * count))
        else:
            raise r.no("repeat of an axis whose size varies")
    return Value(r.emit(node.target, x.node, [r.at(count) for count in times]), tuple(axes), x.dtype)


@rule(aten.slice)
def slice_rows(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, position, start, end, step = (*args, *(0, None, None, 1)[len(args) - 1 :])
    position %= len(x.axes)
    axis, size = x.axes[position], expression_of(node.meta["val"].shape[position])
    whole = size_of(axis)
    if are_equal(whole, size):
        return x
    start = 0 if start is None else start
    if isinstance(whole, int) and isinstance(size, int) and not isinstance(start, sympy.Basic):
        end = None if isinstance(end, sympy.Basic) else end
        return Value(r.emit(node.target, x.node, position, start, start + size * step if end is None else end, step), (*x.axes[:position], axis_of(size), *x.axes[position + 1 :]), x.dtype)  # fmt: skip
    if isinstance(start, int) and start < 0:
        start = whole + start
    return rows_of(r, x, position, start, size, step)


def rows_of(r: Rewriter, x: Value, position: int, start: Any, size: Any, step: int) -> Value:
    """`size` true rows from `start` on. Where the bucket's rows are not those, they are gathered."""
    axis = x.axes[position]
    factor = r.single(axis) if is_padded(axis) else Factor(size_of(axis))
    if step == 1 and factor.is_padded and isinstance(start, int):
        if isinstance(size, int):
            node = r.emit(aten.slice.Tensor, x.node, position, start, start + size)
            return Value(node, x.axes, x.dtype).where(position, axis_of(size))
        ends = are_equal(start + size, factor.size)
        if ends or (start == 0 and x.dtype.is_floating_point):  # whole numbers may be an index: their rows beyond stay places
            node = r.emit(aten.slice.Tensor, x.node, position, start, start + r.at(size))
            return Value(node, x.axes, x.dtype).where(position, axis_of(size, factor.state if ends else State.LOOSE))
    index = r.emit(aten.arange.default, size) if isinstance(size, int) else r.rows(size)
    if step != 1:
        index = r.emit(aten.mul.Tensor, index, step)
    if not are_equal(start, 0):
        index = r.emit(aten.add.Tensor, index, start if isinstance(start, int) else r.number(start))
    return r.taken(x, position, index, axis_of(size))


@rule(aten.select)
def select(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, position, index = args
    position %= len(x.axes)
    axis = x.axes[position]
    axes = (*x.axes[:position], *x.axes[position + 1 :])
    is_last = is_padded(axis) and index == -1 and all(factor.state is State.EDGE for factor in axis)
    if isinstance(index, int) and (not is_padded(axis) or index >= 0 or is_last):
        return Value(r.emit(node.target, x.node, position, index), axes, x.dtype)
    if isinstance(index, int):
        index = size_of(axis) + index
    if len(axis) > 1:
        raise r.no("it takes a row of an axis that joins a size that varies with another")
    row = r.taken(x, position, r.emit(aten.reshape.default, r.number(index), [1]), ())
    return Value(r.emit(aten.reshape.default, row.node, r.shape(axes)), axes, x.dtype)


@rule(aten.split, aten.split_with_sizes, aten.unbind, aten.chunk)
def split(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Value, ...]:
    x = args[0]
    is_unbind = node.target.overloadpacket is aten.unbind
    places = args[1:] if is_unbind else args[2:]
    position = (places[0] if places else kwargs.get("dim", 0)) % len(x.axes)
    if is_padded(x.axes[position]):
        return _parts(r, x, position, [expression_of(one.shape[position]) for one in node.meta["val"]])
    made = r.emit(node.target, *args, **kwargs)
    found = []
    for i, one in enumerate(node.meta["val"]):
        axes = (*x.axes[:position], *x.axes[position + 1 :]) if is_unbind else x.where(position, axis_of(one.shape[position])).axes
        found.append(Value(r.emit(operator.getitem, made, i), axes, x.dtype))
    return tuple(found)


def _parts(r: Rewriter, x: Value, position: int, sizes: list[Any]) -> tuple[Value, ...]:
    found, start = [], expression_of(0)
    for size in sizes:
        found.append(rows_of(r, x, position, start, size, 1))
        start = expression_of(start + size)
    return tuple(found)


@rule(aten.stack)
def stack(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    parts = args[0]
    position = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % (len(parts[0].axes) + 1)
    axes, states = _of_all(r, [part.axes for part in parts])
    return Value(r.emit(node.target, [part.node for part in parts], position), (*axes[:position], axis_of(len(parts)), *axes[position:]), parts[0].dtype)


@rule(aten.cat)
def cat(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    example = node.meta["val"]
    parts = [part for part in args[0] if not (len(part.axes) == 1 and len(example.shape) != 1)]  # torch leaves out what is (0,)
    position = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % len(example.shape)
    others, _ = _of_all(r, [part.where(position, ()).axes for part in parts])
    sizes = [size_of(part.axes[position]) for part in parts]
    made = Value(r.emit(aten.cat.default, [part.node for part in parts], position), others, example.dtype)
    total = expression_of(sum(sizes))
    if not any(is_padded(part.axes[position]) for part in parts[:-1]):
        last = parts[-1].axes[position]
        state = r.single(last).state if is_padded(last) else State.EDGE
        return made.where(position, axis_of(total, state))
    return r.taken(made, position, _places(r, sizes, total), axis_of(total))


def _places(r: Rewriter, sizes: list[Any], total: Any) -> fx.Node:
    """Where each true row of joined parts lies among the bucket's: (bucket,) int64."""
    rows = r.rows(total)
    index, true = rows, expression_of(0)
    for size in sizes[:-1]:
        gap = r.at(size)
        true = expression_of(true + size)
        if isinstance(size, int):
            continue
        behind = r.emit(aten.ge.Tensor, rows, r.number(true))
        # rows of later parts lie further on by the rows that only fill up
        index = r.emit(aten.add.Tensor, index, r.emit(aten.mul.Tensor, behind, r.number(gap - size)))
    return index


def _of_all(r: Rewriter, operands: list[Any]) -> tuple[tuple[Axis, ...], Any]:
    """Axes of parts that lie beside each other: EDGE where all are, ZERO where all are."""
    axes, states = r.joined(*operands)
    found = []
    for held in states:
        found.append(held[0] if len(set(held)) == 1 else State.LOOSE)
    following = iter(found)
    return tuple(tuple(Factor(f.size, next(following)) if f.is_padded else f for f in axis) for axis in axes), states


@rule(aten.fill, aten.copy)
def copy(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """The first operand's shape and dtype, the second's numbers."""
    x, source = args[:2]
    if not isinstance(source, Value):
        return Value(r.emit(aten.full.default, r.shape(x.axes), source, dtype=x.dtype), _edges(x.axes), x.dtype)
    axes, _ = r.joined(x.axes, source.axes)
    missing = len(axes) - len(source.axes)
    own = tuple(source.axes[i - missing] if i >= missing and source.axes[i - missing] else axis for i, axis in enumerate(axes))
    made = r.emit(aten.expand.default, r.emit(aten._to_copy.default, source.node, dtype=x.dtype), r.shape(axes))
    return Value(r.emit(aten.clone.default, made), own, x.dtype)


def _edges(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    return tuple(with_state(axis, State.EDGE) for axis in axes)


@rule(aten.select_scatter, aten.slice_scatter)
def scatter_rows(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """Some rows replaced by others."""
    x, source, position, *place = args
    position %= len(x.axes)
    is_select = node.target.overloadpacket is aten.select_scatter
    rows = source.axes if is_select else (*source.axes[:position], *source.axes[position + 1 :])
    others, _ = _of_all(r, [(*x.axes[:position], *x.axes[position + 1 :]), rows])
    axis = x.axes[position]
    if is_padded(axis):
        if not is_select and are_equal(size_of(source.axes[position]), size_of(axis)):
            return source
        start = place[0] if place else kwargs.get("start", 0)
        if not is_select and isinstance(start, int) and start > 0 and are_equal(size_of(source.axes[position]) + start, size_of(axis)):
            made = r.emit(node.target, x.node, source.node, position, start, r.at(size_of(axis)))
            behind = axis_of(size_of(axis), r.single(source.axes[position]).state)
            return Value(made, (*others[:position], behind, *others[position:]), x.dtype)
        if not is_select or place != [0]:  # any other might be the last row, which those beyond copy
            raise r.no("rows of an axis whose size varies are written")
    return Value(r.emit(node.target, x.node, source.node, position, *place), (*others[:position], axis, *others[position:]), x.dtype)


@rule(aten.constant_pad_nd)
def pad(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, widths, number = (*args, 0)[:3]
    if any(not isinstance(width, int) for width in widths):
        raise r.no("constant_pad_nd by a size that varies")
    axes = list(x.axes)
    behind = []
    for i in range(len(widths) // 2):
        position = len(axes) - 1 - i
        before, after = widths[2 * i], widths[2 * i + 1]
        if not before and not after:
            continue
        axis = axes[position]
        if is_padded(axis):
            if before < 0 or after < 0:
                raise r.no("constant_pad_nd cuts off rows of an axis whose size varies")
            state = r.single(axis).state
            axes[position] = axis_of(size_of(axis) + before + after, State.EDGE if after else state)
            behind += [(position, expression_of(size_of(axis) + before))] if after else []
        else:
            axes[position] = axis_of(size_of(axis) + before + after)
    made = r.emit(node.target, x.node, list(widths), number)
    for position, first in behind:
        index = r.emit(aten.arange.default, r.at(size_of(axes[position])))
        is_added = r.emit(aten.ge.Tensor, index, r.number(first))
        is_added = r.emit(aten.reshape.default, is_added, [-1] + [1] * (len(axes) - 1 - position))
        made = r.emit(aten.masked_fill.Scalar, made, is_added, number)
    return Value(made, tuple(axes) if number == 0 else tuple(map(_without_zeros, axes)), x.dtype)


def _without_zeros(axis: Axis) -> Axis:
    return tuple(Factor(f.size, State.LOOSE) if f.is_padded and f.state is State.ZERO else f for f in axis)


@rule(aten.tril, aten.triu)
def triangle(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, diagonal = (*args, 0)[:2]
    if not is_padded(x.axes[-2]) and not is_padded(x.axes[-1]):
        return Value(r.emit(node.target, x.node, diagonal), x.axes, x.dtype)
    if isinstance(diagonal, sympy.Basic):
        diagonal = r.number(diagonal)
    places = [_row_numbers(r, x.axes[i]) for i in (-2, -1)]
    offset = r.emit(aten.sub.Tensor, places[1], r.emit(aten.unsqueeze.default, places[0], 1))
    compare = aten.le if node.target.overloadpacket is aten.tril else aten.ge
    kept = r.emit(compare.Tensor if isinstance(diagonal, fx.Node) else compare.Scalar, offset, diagonal)
    if x.dtype is torch.bool:
        return Value(r.emit(aten.logical_and.default, x.node, kept), x.axes, x.dtype)
    return Value(r.emit(aten.mul.Tensor, x.node, r.emit(aten._to_copy.default, kept, dtype=x.dtype)), x.axes, x.dtype)


def _row_numbers(r: Rewriter, axis: Axis) -> fx.Node:
    if not is_padded(axis):
        return r.emit(aten.arange.default, size_of(axis))
    return r.rows(r.single(axis).size)


@rule(aten.flip)
def flip(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, asked = args
    for position in (asked if isinstance(asked, tuple) else (asked,)):
        position %= max(len(x.axes), 1)
        if x.axes and is_padded(x.axes[position]):
            size = r.single(x.axes[position]).size
            index = r.emit(aten.sub.Tensor, r.number(size - 1), r.rows(size))
            x = r.taken(x, position, index, axis_of(size))
        else:
            x = Value(r.emit(node.target, x.node, [position]), x.axes, x.dtype)
    return x


@rule(aten.roll)
def roll(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, shifts, places = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("dims", ())
    if not places and any(map(is_padded, x.axes)):
        raise r.no("roll over all axes at once, of which one has a size that varies")
    if not places:
        return Value(r.emit(node.target, *args, **kwargs), x.axes, x.dtype)
    for shift, position in zip(shifts, places, strict=True):
        position %= len(x.axes)
        if is_padded(x.axes[position]):
            size = r.single(x.axes[position]).size
            moved = r.emit(aten.sub.Tensor, r.rows(size), r.number(shift) if isinstance(shift, sympy.Basic) else shift)
            x = r.taken(x, position, r.emit(aten.remainder.Tensor, moved, r.number(size)), axis_of(size))
        else:
            x = Value(r.emit(node.target, x.node, [shift], [position]), x.axes, x.dtype)
    return x


@rule(aten.cumprod)
def cumprod(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, position = args[:2]
    position %= max(len(x.axes), 1)
    if x.axes and is_padded(x.axes[position]):
        r.single(x.axes[position])
        x = r.filled(x, position, 1)
        x = x.where(position, with_state(x.axes[position], State.EDGE))  # the last product goes on
    return Value(r.emit(node.target, x.node, position, **kwargs), x.axes, node.meta["val"].dtype)


@rule(aten.cumsum)
def cumsum(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, position = args[:2]
    position %= max(len(x.axes), 1)
    if x.axes and is_padded(x.axes[position]):
        r.single(x.axes[position])
        x = r.zeroed(x, position)
        x = x.where(position, with_state(x.axes[position], State.EDGE))  # the last sum goes on
    return Value(r.emit(node.target, x.node, position, **kwargs), x.axes, node.meta["val"].dtype)
