"""Reductions and softmax.

    reduce_sum(x (T, C), axes = [-1])       ->    reduce_sum(x [1, C, 1, T], axes = [1], keep_dims = true)
    softmax(x (H, S, S), axis = -1)         ->    softmax(x [1, H, S, S], axis = 3)
Sums and means take any axis as it lies. The other reductions and softmax take the last dimension only, which is
what chips do (ane-constraints.md, sections 1 and 9): their axes are moved to the end of the order.
"""

import math
from collections.abc import Iterator

from torchane.mil.ir import Op, Var
from torchane.passes.layout.emit import Emitter, Rule, upright
from torchane.passes.layout.order import Order, Shape, Shape4, fit, natural, pieces, sizes
from torchane.passes.layout.ways import Orders, Tensor, Way

_ANY_AXIS = {"reduce_sum", "reduce_mean"}


def _gone(op: Op) -> set[int]:
    """The axes of x that are reduced."""
    rank, axes = op.args["x"].rank, op.value("axes")  # type: ignore[union-attr]
    return set(range(rank)) if axes is None else {axis % rank for axis in axes}  # type: ignore[attr-defined]


def _numbers_after(op: Op) -> dict[int, int]:
    """What each axis of x that stays is called in the result."""
    stays = [axis for axis in range(op.args["x"].rank) if axis not in _gone(op)]  # type: ignore[union-attr]
    return {axis: axis if op.value("keep_dims", False) else place for place, axis in enumerate(stays)}


def _reduce_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Way]:
    (order,), gone, numbers = _known(op, orders), _gone(op), _numbers_after(op)
    kept = tuple(axis for axis in order if axis not in gone)
    if op.kind.name not in _ANY_AXIS or pieces([axis in gone for axis in order]) > 4:
        order = (*kept, *(axis for axis in order if axis in gone))
    yield Way((order,), tuple(numbers[axis] for axis in kept))


def _reduce_backward(op: Op, order: Order) -> tuple[Order | None, ...]:
    """The reduced axes last: as good as any place for sums, and what the others ask for."""
    old = {new: axis for axis, new in _numbers_after(op).items()}
    reduced = (axis for axis in natural(op.args["x"].shape) if axis in _gone(op))  # type: ignore[union-attr]
    return ((*(old[axis] for axis in order), *reduced),)


def _emit_reduce(e: Emitter, op: Op, way: Way) -> None:
    x: Tensor = op.args["x"]  # type: ignore[assignment]
    (read,), gone = way.reads, _gone(op)
    stored, marks = sizes(x.shape, read), [axis in gone for axis in read]
    templates = [upright(e.stored(x, read).shape)] if isinstance(x, Var) else []
    view, cut = fit(stored, marks, templates) or ((0, 0, 0, 0), ())
    axes = tuple(dim for dim, is_gone in enumerate(cut) if is_gone)
    if axes != (3,) and (not axes or op.kind.name not in _ANY_AXIS):
        view, axes = _last_alone(stored, math.prod(size for size, is_gone in zip(stored, marks) if is_gone)), (3,)
    e.define(op.output, way.writes, e.emit(op, (e.read(x, read, view),), axes=axes, keep_dims=True))


def _last_alone(stored: Shape, count: int) -> Shape4:
    """A view of axes as stored whose last dimension holds the last `count` entries, a product of axes, alone."""
    before = list(stored)
    while before and count > 1 and math.prod(stored[len(before) :]) != count:
        before.pop()
    if len(before) < 2:
        return (1, math.prod(before), 1, count)
    return (1, math.prod(before[:-1]), before[-1], count)


REDUCTION = Rule(_reduce_options, _emit_reduce, _reduce_backward)


def _softmax_axis(op: Op) -> int:
    return op.value("axis", -1) % op.output.rank  # type: ignore[operator]


def _softmax_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Way]:
    (order,), axis = _known(op, orders), _softmax_axis(op)
    read = (*(a for a in order if a != axis), *(a for a in order if a == axis))
    yield Way((read,), read)


def _softmax_backward(op: Op, order: Order) -> tuple[Order | None, ...]:
    return (order if order and order[-1] == _softmax_axis(op) else None,)


def _emit_softmax(e: Emitter, op: Op, way: Way) -> None:
    x: Tensor = op.args["x"]  # type: ignore[assignment]
    (read,), count = way.reads, op.output.shape[_softmax_axis(op)]
    view = _last_alone(sizes(op.output.shape, read), count)  # type: ignore[arg-type]
    if isinstance(x, Var) and e.stored(x, read).shape[3] == count:
        view = upright(e.stored(x, read).shape)
    e.define(op.output, read, e.emit(op, (e.read(x, read, view),), axis=3))


SOFTMAX = Rule(_softmax_options, _emit_softmax, _softmax_backward)


def _known(op: Op, orders: Orders) -> tuple[Order]:
    return (orders[0] if orders[0] is not None else natural(op.args["x"].shape),)  # type: ignore[union-attr]
