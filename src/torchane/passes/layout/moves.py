"""Ops that compute nothing: other names for the same bytes, and pieces of tensors.

transpose               never moves anything: axes get other numbers
reshape and its like    nothing moves if axes that become one lie in a run, else those are gathered
identity                nothing; outputs that need a value of their own get one at the end
slices, pad             in any order, one axis after the other, each in a view where it is one dimension
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torchane.errors import CompileError
from torchane.mil.ir import Op, Var
from torchane.passes.layout.emit import Emitter, Rule, upright
from torchane.passes.layout.order import (
    Order,
    completed,
    fit,
    gathered,
    natural,
    reshape_blocks,
    reshaped,
    sizes,
    transposed,
)  # fmt: skip
from torchane.passes.layout.ways import Orders, Tensor, Way


def _x(op: Op) -> Tensor:
    return op.args["x"]  # type: ignore[return-value]


def _order(op: Op, orders: Orders) -> Order:
    return orders[0] if orders[0] is not None else natural(_x(op).shape)


def _emit_nothing(e: Emitter, op: Op, way: Way) -> None:
    e.define(op.output, way.writes, _stored(e, _x(op), way.reads[0]))


def _stored(e: Emitter, x: Tensor, order: Order) -> Var:
    """The value in an order, a constant too."""
    return e.stored(x, order) if isinstance(x, Var) else e.b.identity(x=e.read(x, order, (1, 1, 1, x.type.size)))


# --- transpose, reshape, identity -----------------------------------------------------------------------------


def _perm(op: Op) -> tuple[int, ...]:
    return tuple(axis % _x(op).rank for axis in op.value("perm"))  # type: ignore[attr-defined]


def _transpose_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Way]:
    order = _order(op, orders)
    yield Way((order,), transposed(order, _perm(op)))


def _transpose_backward(op: Op, order: Order) -> tuple[Order | None, ...]:
    return (tuple(_perm(op)[axis] for axis in order),)


TRANSPOSE = Rule(_transpose_options, _emit_nothing, _transpose_backward)


def _reshape_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Way]:
    order, blocks = _order(op, orders), reshape_blocks(_x(op).shape, op.output.shape)
    as_it_lies = reshaped(order, blocks) is not None
    for read in (order,) if as_it_lies else dict.fromkeys(gathered(order, blocks)):
        yield Way((read,), reshaped(read, blocks))  # type: ignore[arg-type]


def _reshape_backward(op: Op, order: Order) -> tuple[Order | None, ...]:
    return (reshaped(order, reshape_blocks(op.output.shape, _x(op).shape)),)


RESHAPE = Rule(_reshape_options, _emit_nothing, _reshape_backward)


def _numbers_after(op: Op) -> dict[int, int]:
    """What each axis of x is called in the result; those that squeeze_mask drops are absent."""
    squeezed = op.value("squeeze_mask") or (False,) * _x(op).rank
    kept = [axis for axis, is_gone in enumerate(squeezed) if not is_gone]  # type: ignore[arg-type]
    return {axis: number for number, axis in enumerate(kept)}


def _same_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Way]:
    """The order stays; an axis cut down to one entry leaves it, one that is padded up from one entry joins it."""
    order, numbers, wanted = _order(op, orders), _numbers_after(op), natural(op.output.shape)
    kept = tuple(numbers[axis] for axis in order if numbers.get(axis) in wanted)
    yield Way((order,), completed(kept, wanted, ()))


def _same_backward(op: Op, order: Order) -> tuple[Order | None, ...]:
    axis_of, wanted = {number: axis for axis, number in _numbers_after(op).items()}, natural(_x(op).shape)
    kept = tuple(axis_of[number] for number in order if axis_of[number] in wanted)
    return (completed(kept, wanted, ()),)


IDENTITY = Rule(_same_options, _emit_nothing, _same_backward)


# --- slices and pads ------------------------------------------------------------------------------------------


def _alone(e: Emitter, physical: Var, stored: Sequence[int], place: int) -> tuple[Var, int]:
    """A value whose axes are `stored`, in a view where the axis at `place` is one dimension; and which."""
    marks = [(index > place) - (index < place) for index in range(len(stored))]
    kept = [(size, mark) for size, mark in zip(stored, marks) if size != 1]
    view, cut = fit([s for s, _ in kept], [m for _, m in kept], [upright(physical.shape)]) or (physical.shape, ())
    if cut.count(0) != 1:
        before, after = math.prod(stored[:place]), math.prod(stored[place + 1 :])
        view, cut = (1, before, stored[place], after), (None, None, 0, None)
    return e.view(physical, view), cut.index(0)


def _entries(op: Op) -> list[range]:
    """The entries of each axis of x that a slice keeps."""
    shape, begin = _x(op).shape, op.value("begin")
    if op.kind.name == "slice_by_size":
        starts = [start + whole if start < 0 else start for start, whole in zip(begin, shape)]
        return [range(b, n if s == -1 else b + s) for b, s, n in zip(starts, op.value("size"), shape)]
    rank = len(shape)
    end, stride = op.value("end"), op.value("stride") or (1,) * rank
    from_start, to_end, squeezed = (op.value(f"{key}_mask") or (False,) * rank for key in ("begin", "end", "squeeze"))
    slices = (
        slice(begin[axis] % shape[axis], begin[axis] % shape[axis] + 1)
        if squeezed[axis]
        else slice(None if from_start[axis] else begin[axis], None if to_end[axis] else end[axis], stride[axis])
        for axis in range(rank)
    )
    return [range(whole)[entries] for whole, entries in zip(shape, slices)]


def _emit_slice(e: Emitter, op: Op, way: Way) -> None:
    """The axis that keeps the least first."""
    x, (order,), entries = _x(op), way.reads, _entries(op)
    physical, stored = _stored(e, x, order), list(sizes(x.shape, order))
    for axis in sorted(order, key=lambda axis: len(entries[axis]) / x.shape[axis]):
        keep, place = entries[axis], order.index(axis)
        if keep == range(x.shape[axis]):
            continue
        if keep.step < 0:
            raise CompileError(f"{op.name}: a slice with stride {keep.step} has no rank-4 form. Reverse by a matmul.")
        physical, dim = _alone(e, physical, stored, place)
        physical = _cut(e, physical, dim, keep, op.output.name)
        stored[place] = len(keep)
    e.define(op.output, way.writes, physical)


def _cut(e: Emitter, physical: Var, dim: int, keep: range, name: str) -> Var:
    def at(value: int, others: Sequence[int]) -> tuple[int, ...]:
        return (*others[:dim], value, *others[dim + 1 :])

    begin = at(keep.start, (0, 0, 0, 0))
    if keep.step == 1 or len(keep) == 1:
        return e.b.slice_by_size(x=physical, begin=begin, size=at(len(keep), physical.shape), name=name)
    end, stride = at(keep[-1] + 1, physical.shape), at(keep.step, (1, 1, 1, 1))
    return e.b.slice_by_index(x=physical, begin=begin, end=end, stride=stride, name=name)


def _slice_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Way]:
    """Of a weight also with the axis that is cut in front: the taps of a kernel are cut from one copy then."""
    order, x = _order(op, orders), _x(op)
    cut = [axis for axis in order if op.output.shape[axis] != x.shape[axis]] if op.kind.name == "slice_by_size" else []
    if x in weights and len(cut) == 1 and len(order) > 1 and order[-1] == cut[0]:
        yield from _same_options(op, [(cut[0], *order[:-1])], weights)
        yield from (replace(way, awkward=1, copied=x.type.size_bytes) for way in _same_options(op, orders, weights))
    else:
        yield from _same_options(op, orders, weights)


SLICE = Rule(_slice_options, _emit_slice, _same_backward)


def _emit_pad(e: Emitter, op: Op, way: Way) -> None:
    if op.value("mode", "constant") != "constant":
        raise CompileError(f"{op.name}: pad with mode {op.value('mode')} has no rank-4 form; only 'constant' has.")
    x, amounts = _x(op), op.value("pad")
    physical, axes = _stored(e, x, way.reads[0]), completed(way.reads[0], natural(op.output.shape), ())
    stored = list(sizes(x.shape, axes))
    rest = {key: arg for key, arg in op.args.items() if key not in ("x", "pad")}
    for place, axis in enumerate(axes):
        pair = 2 * (axis - x.rank) + len(amounts)  # the last axes are padded, the others left
        around = amounts[pair : pair + 2] if pair >= 0 else (0, 0)
        if any(around):
            physical, dim = _alone(e, physical, stored, place)
            wide = (*(0, 0) * dim, *around, *(0, 0) * (3 - dim))
            physical = e.b.emit(op.kind, {"x": physical, "pad": wide, **rest}, op.output.name)[0]
            stored[place] += sum(around)
    e.define(op.output, way.writes, physical)


PAD = Rule(_same_options, _emit_pad, _same_backward)
