"""Ops of one result per element, in one common order of all operands.

    mul(x (T, C) stored (C, T), gain (C,))    ->    mul(x [1, C, 1, T], gain [1, C, 1, 1])
An operand that broadcasts lies in what is left of the common order. Axes are joined into four dimensions, but
for those that some operand has and another lacks; the view of an operand that has all axes is kept if it can be.
concat shares this: its operands, too, lie in one order.
"""

import math
from collections.abc import Iterator

from torchane.errors import CompileError
from torchane.mil.ir import Literal, Op, Var
from torchane.mil.types import TensorType
from torchane.passes.layout.emit import Emitter, Rule, upright
from torchane.passes.layout.order import Order, Shape4, completed, fit, natural, pieces, sizes
from torchane.passes.layout.ways import Orders, Tensor, Way, operands


def _options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Way]:
    viewable = [order for order in common_orders(op, orders) if pieces(_holders(op, order)) <= 4]
    for order in viewable or [_gathered_by_holders(op)]:
        yield Way(_read_along(op, order), order)


def common_orders(op: Op, orders: Orders) -> list[Order]:
    """Orders of the result that some operand already has, the axes that it lacks put in."""
    wanted, rank = natural(op.output.shape), op.output.rank
    aligned = [
        tuple(axis + rank - tensor.rank for axis in order)
        for tensor, order in zip(operands(op), orders)
        if order is not None
    ]
    found = [
        completed(order, wanted, [other for other in aligned if other is not order], in_front=in_front)
        for in_front in (False, True)
        for order in aligned
    ]
    return list(dict.fromkeys(found)) or [wanted]


def _holders(op: Op, order: Order) -> list[frozenset[int]]:
    """For each axis of the result, in that order, which operands have it; the others broadcast over it."""
    tensors, lacks = operands(op), [op.output.rank - tensor.rank for tensor in operands(op)]
    return [
        frozenset(i for i, t in enumerate(tensors) if axis >= lacks[i] and t.shape[axis - lacks[i]] != 1)
        for axis in order
    ]


def _gathered_by_holders(op: Op) -> Order:
    """An order with axes that the same operands have side by side. Raises CompileError if that is too many still."""
    axes = natural(op.output.shape)
    holders = dict(zip(axes, _holders(op, axes)))
    order = tuple(sorted(axes, key=lambda axis: (sorted(holders[axis]), axis)))
    if pieces(_holders(op, order)) > 4:
        shown = " and ".join(str(tensor.type) for tensor in operands(op))
        raise CompileError(
            f"{op.name}: {op.kind.name} of {shown} broadcasts over more than four separate axes, and a program's "
            "tensors have four."
        )
    return order


def _read_along(op: Op, order: Order) -> tuple[Order, ...]:
    """What an order of the result says about each operand."""
    lacks = [op.output.rank - tensor.rank for tensor in operands(op)]
    return tuple(
        tuple(axis - lack for axis in order if axis - lack in natural(tensor.shape))
        for tensor, lack in zip(operands(op), lacks)
    )


def _emit(e: Emitter, op: Op, way: Way) -> None:
    """In the view of an operand that has all axes, whichever needs the fewest reshapes."""
    tensors, order = operands(op), way.writes
    shape, marks = sizes(op.output.shape, order), _holders(op, order)
    views = [e.stored(t, read).shape if isinstance(t, Var) else None for t, read in zip(tensors, way.reads)]
    whole = [upright(v) for v, t in zip(views, tensors) if v is not None and t.type.size == op.output.type.size]
    choices = [_operand_views(shape, marks, (view,), len(tensors)) for view in dict.fromkeys(whole)]
    choices = choices or [_operand_views(shape, marks, (), len(tensors))]
    best = min(choices, key=lambda choice: sum(view not in (None, new) for view, new in zip(views, choice)))
    reads = tuple(
        _number(tensor) if _is_number(tensor) and any(views) else e.read(tensor, read, view)
        for tensor, read, view in zip(tensors, way.reads, best)
    )
    e.define(op.output, order, e.emit(op, reads))


def _is_number(tensor: Tensor) -> bool:
    return isinstance(tensor, Literal) and tensor.type.size == 1


def _number(tensor: Literal) -> Literal:
    """A constant of one entry without axes: the other operands bring the rank."""
    return Literal(TensorType(tensor.type.dtype), tensor.value.reshape(()))


def _operand_views(
    shape: tuple[int, ...], marks: list[frozenset[int]], templates: tuple[Shape4, ...], count: int
) -> list[Shape4]:
    """The view of the result that `fit` finds, cut down for each operand to the dimensions that it has."""
    found = fit(shape, marks, templates)
    assert found is not None, "options are viewable"
    view, held = found
    return [tuple(size if mark and i in mark else 1 for size, mark in zip(view, held)) for i in range(count)]  # type: ignore[misc]


ELEMENTWISE = Rule(_options, _emit, _read_along)


def _concat_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Way]:
    for order in common_orders(op, orders):
        yield Way(_read_along(op, order), order)


def _emit_concat(e: Emitter, op: Op, way: Way) -> None:
    if op.value("interleave", False):
        raise CompileError(
            f"{op.name}: concat that interleaves has no rank-4 form. Write it as products with constants."
        )
    axis: int = op.value("axis") % op.output.rank  # type: ignore[operator]
    place = way.writes.index(axis) if axis in way.writes else 0
    stored = sizes(op.output.shape, way.writes)
    before, after = math.prod(stored[:place]), math.prod(stored[place + 1 :])
    views = [(1, before, tensor.shape[axis], after) for tensor in operands(op)]
    reads = tuple(e.read(*found) for found in zip(operands(op), way.reads, views))
    e.define(op.output, way.writes, e.emit(op, reads, axis=2))


CONCAT = Rule(_concat_options, _emit_concat, _read_along)
