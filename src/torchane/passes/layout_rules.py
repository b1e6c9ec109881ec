"""One rule per family of ops: in which orders it can run, and what it becomes in rank 4.

A rule's `options` names ways to run an op, given the orders of its operands (None for a constant, which takes
any); the analysis picks one. Its `emit` writes the op in the order that was picked. A family needs:

    element-wise    one order for all operands
    reductions      any order; all but sums and means: the reduced axes last
    softmax         its axis last
    reshape         axes that become one stored next to each other; transpose: nothing, ever
    slices, pads    any order;  concat: one order for all
    matmul          see layout_matmul
    conv            [N, C, H, W], as it is
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from torchane.errors import CompileError
from torchane.mil.ir import Literal, Op, Var, literal
from torchane.mil.kinds import OpKind
from torchane.mil.ops import activation, constant, elementwise, reduce, unary
from torchane.passes import layout_matmul
from torchane.passes.layout_emit import Emitter
from torchane.passes.layout_order import (
    Order,
    Shape,
    Shape4,
    completed,
    fit,
    gathered,
    natural,
    pieces,
    reshape_blocks,
    reshaped,
    sizes,
    transposed,
)
from torchane.passes.layout_step import Step, Tensor, operands

Orders = Sequence[Order | None]


@dataclass(frozen=True)
class Rule:
    options: Callable[[Op, Orders, frozenset[Var]], Iterator[Step]]
    emit: Callable[[Emitter, Op, Step], None]
    backward: Callable[[Op, Order], tuple[Order | None, ...]] | None = None
    """The orders in which operands would have to lie for the result to be in an order without a move; None for
    what the op has no say in, no function where an op decides its order by itself."""


def rule_of(op: Op) -> Rule:
    """Raises CompileError for an op that no rule knows."""
    rule = _RULES.get(op.kind.name)
    if rule is None or len(op.outputs) != 1 or op.blocks:
        raise CompileError(
            f"{op.name}: {op.kind.name} has no channels-first form. An earlier pass has to write it in other ops, "
            f"or the capture rule that made it has to leave it to PyTorch. Known here: {', '.join(sorted(_RULES))}."
        )
    return rule


# --- element-wise ---------------------------------------------------------------------------------------------


def _aligned(op: Op, orders: Orders) -> tuple[list[Order | None], list[int]]:
    """The operands' orders in the axes of the result, to whose end they are aligned, and each one's offset."""
    offsets = [op.output.rank - tensor.rank for tensor in operands(op)]
    return [o if o is None else tuple(a + n for a in o) for o, n in zip(orders, offsets)], offsets


def _common_orders(op: Op, orders: Orders) -> Iterator[Order]:
    """Orders for the result that some operand, its missing axes put in, already has."""
    wanted = natural(op.output.shape)
    lies = [lie for lie in _aligned(op, orders)[0] if lie is not None]
    for in_front in (False, True):
        for lie in lies:
            yield completed(lie, wanted, [other for other in lies if other is not lie], in_front=in_front)
    if not lies:
        yield wanted


def _holders(op: Op, order: Order) -> list[frozenset[int]]:
    """For each axis of the result, in that order, which operands have it; the others broadcast over it."""
    rank, tensors = op.output.rank, operands(op)
    return [
        frozenset(
            i for i, t in enumerate(tensors) if axis + t.rank >= rank and t.shape[axis + t.rank - rank] != 1
        )
        for axis in order
    ]  # fmt: skip


def _read_along(op: Op, order: Order) -> tuple[Order, ...]:
    """What an order of the result says about each operand."""
    rank = op.output.rank
    return tuple(
        tuple(axis - rank + t.rank for axis in order if axis - rank + t.rank in natural(t.shape)) for t in operands(op)
    )


def _elementwise_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Step]:
    found = list(dict.fromkeys(_common_orders(op, orders)))
    viewable = [order for order in found if pieces(_holders(op, order)) <= 4]
    if not viewable:
        by_holders = sorted(zip(_holders(op, natural(op.output.shape)), natural(op.output.shape)), key=_by_set)
        viewable = [tuple(axis for _, axis in by_holders)]
        if pieces(_holders(op, viewable[0])) > 4:
            shown = ", ".join(str(tensor.type) for tensor in operands(op))
            raise CompileError(
                f"{op.name}: {op.kind.name} of {shown} broadcasts over more than four separate axes, and a program "
                "has four. Write it as two steps, or join axes by a reshape before."
            )
    for order in viewable:
        yield Step(_read_along(op, order), order)


def _elementwise_backward(op: Op, order: Order) -> tuple[Order | None, ...]:
    return _read_along(op, order)


def _by_set(item: tuple[frozenset[int], int]) -> tuple[list[int], int]:
    return sorted(item[0]), item[1]


def _emit_elementwise(e: Emitter, op: Op, step: Step) -> None:
    """In the view of an operand that has all axes, if it keeps apart what others broadcast over."""
    tensors, order = operands(op), step.writes
    shape, marks = sizes(op.output.shape, order), _holders(op, order)
    views = [e.stored(t, read).shape if isinstance(t, Var) else None for t, read in zip(tensors, step.reads)]
    whole = [_upright(v) for v, t in zip(views, tensors) if v is not None and t.type.size == op.output.type.size]
    choices = [fit(shape, marks, (view,)) for view in dict.fromkeys(whole)] or [fit(shape, marks)]

    def shapes(choice: tuple[Shape4, tuple]) -> list[Shape4]:
        return [
            tuple(size if mark and i in mark else 1 for size, mark in zip(*choice)) for i in range(len(tensors))
        ]  # fmt: skip

    best = min(choices, key=lambda choice: sum(view not in (None, new) for view, new in zip(views, shapes(choice))))
    reads = tuple(
        literal(t.value.reshape(())) if isinstance(t, Literal) and t.type.size == 1 and any(views) else e.read(t, o, s)
        for t, o, s in zip(tensors, step.reads, shapes(best))
    )
    e.define(op.output, order, e.emit(op, reads))


def _upright(view: Shape4) -> Shape4:
    """[1, 1, a, b], which a matmul leaves, as [1, a, 1, b]: channels on the axis of channels."""
    return (1, view[2], 1, view[3]) if view[:2] == (1, 1) else view


# --- reductions and softmax -----------------------------------------------------------------------------------

#: The reductions that chips take along any axis; the others only along the last.
_ANY_AXIS = {"reduce_sum", "reduce_mean"}


def _reduced(op: Op) -> tuple[int, ...]:
    """The axes of more than one entry that go."""
    x = op.args["x"]
    axes = op.value("axes")
    return tuple(axis for axis in natural(x.shape) if axes is None or axis in [a % x.rank for a in axes])


def _reduce_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Step]:
    x, gone = op.args["x"], _reduced(op)
    order = orders[0] if orders[0] is not None else natural(x.shape)
    kept = tuple(axis for axis in order if axis not in gone)
    read = order
    if op.kind.name not in _ANY_AXIS or pieces([axis in gone for axis in order]) > 4:
        read = (*kept, *(axis for axis in order if axis in gone))
    new = _numbers_after(op)
    yield Step((read,), tuple(new[axis] for axis in kept))


def _numbers_after(op: Op) -> dict[int, int]:
    """What each axis of x that stays is called in the result."""
    x, axes = op.args["x"], op.value("axes")
    gone = set(range(x.rank)) if axes is None else {axis % x.rank for axis in axes}
    stays = [axis for axis in range(x.rank) if axis not in gone]
    return {axis: axis if op.value("keep_dims", False) else place for place, axis in enumerate(stays)}


def _reduce_backward(op: Op, order: Order) -> tuple[Order | None, ...]:
    """The reduced axes last: as good as any place, and what most reductions ask for."""
    old = {new: axis for axis, new in _numbers_after(op).items()}
    return ((*(old[axis] for axis in order), *_reduced(op)),)


def _emit_reduce(e: Emitter, op: Op, step: Step) -> None:
    x, gone, (read,) = op.args["x"], _reduced(op), step.reads
    marks = [axis in gone for axis in read]
    template = [_upright(e.stored(x, read).shape)] if isinstance(x, Var) else []
    found = fit(sizes(x.shape, read), marks, template)
    if gone and op.kind.name in _ANY_AXIS:
        assert found is not None
        shape, cut = found
        axes = tuple(i for i, mark in enumerate(cut) if mark)
    else:
        count = math.prod(sizes(x.shape, gone))
        shape = found[0] if found and found[0][3] == count else _last_alone(sizes(x.shape, read), count)
        axes = (3,)
    result = e.emit(op, (e.read(x, read, shape),), axes=axes, keep_dims=True)
    e.define(op.output, step.writes, result)


def _last_alone(shape: Shape, count: int) -> Shape4:
    """A view whose last dimension holds the last `count` entries of the row, and nothing else."""
    before = list(shape)
    while count > 1 and math.prod(before[len(before) - 1 :]) != count:
        before[-2:] = [before[-2] * before[-1]]
    before = before[:-1] if count > 1 else before
    if len(before) < 2:
        return (1, *(before or [1]), 1, count)  # type: ignore[return-value]
    return (1, math.prod(before[:-1]), before[-1], count)


def _softmax_axis(op: Op) -> int:
    return op.value("axis", -1) % op.output.rank  # type: ignore[operator]


def _softmax_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Step]:
    axis, shape = _softmax_axis(op), op.output.shape
    order = orders[0] if orders[0] is not None else natural(shape)
    last = (axis,) if axis in order else ()
    read = (*(a for a in order if a != axis), *last)
    yield Step((read,), read)


def _softmax_backward(op: Op, order: Order) -> tuple[Order | None, ...]:
    return (order if order and order[-1] == _softmax_axis(op) else None,)


def _emit_softmax(e: Emitter, op: Op, step: Step) -> None:
    x, (read,) = op.args["x"], step.reads
    count = op.output.shape[_softmax_axis(op)]
    view = e.stored(x, read).shape if isinstance(x, Var) else (1, 1, 1, 1)
    shape = _upright(view) if view[3] == count else _last_alone(sizes(op.output.shape, read), count)
    e.define(op.output, read, e.emit(op, (e.read(x, read, shape),), axis=3))


# --- moves ----------------------------------------------------------------------------------------------------


def _transpose_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Step]:
    x = op.args["x"]
    order = orders[0] if orders[0] is not None else natural(x.shape)
    yield Step((order,), transposed(order, tuple(axis % x.rank for axis in op.value("perm"))))


def _transpose_backward(op: Op, order: Order) -> tuple[Order | None, ...]:
    perm = [axis % op.args["x"].rank for axis in op.value("perm")]
    return (tuple(perm[axis] for axis in order),)


def _reshape_backward(op: Op, order: Order) -> tuple[Order | None, ...]:
    return (reshaped(order, reshape_blocks(op.output.shape, op.args["x"].shape)),)


def _reshape_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Step]:
    """As it lies if it can be; else with the axes that become one gathered at the place of one of them."""
    before, after = op.args["x"].shape, op.output.shape
    blocks = reshape_blocks(before, after)
    order = orders[0] if orders[0] is not None else natural(before)
    moved = reshaped(order, blocks)
    for read in (order,) if moved is not None else dict.fromkeys(gathered(order, blocks)):
        yield Step((read,), reshaped(read, blocks))  # type: ignore[arg-type]


def _emit_nothing(e: Emitter, op: Op, step: Step) -> None:
    """The same bytes under another shape."""
    x, (read,) = op.args["x"], step.reads
    shape: Shape4 = (1, 1, 1, op.output.type.size)
    physical = e.stored(x, read) if isinstance(x, Var) else e.b.identity(x=e.read(x, read, shape))
    e.define(op.output, step.writes, physical)


# --- slices, pads, concat -------------------------------------------------------------------------------------


def _same_order_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Step]:
    """The order stays; an axis cut down to one entry leaves it, one that a pad widens from one joins it."""
    x = op.args["x"]
    order = orders[0] if orders[0] is not None else natural(x.shape)
    renamed = _kept_axes(op)
    kept = tuple(renamed[axis] for axis in order if renamed.get(axis) in natural(op.output.shape))
    yield Step((order,), completed(kept, natural(op.output.shape), ()))


def _same_order_backward(op: Op, order: Order) -> tuple[Order | None, ...]:
    old = {new: axis for axis, new in _kept_axes(op).items()}
    kept = tuple(old[axis] for axis in order)
    return (completed(tuple(a for a in kept if a in natural(op.args["x"].shape)), natural(op.args["x"].shape), ()),)


def _kept_axes(op: Op) -> dict[int, int]:
    """Each axis of x under its number in the result; those that squeeze_mask drops are absent."""
    squeezed = op.value("squeeze_mask") or (False,) * op.args["x"].rank
    kept = [axis for axis, gone in enumerate(squeezed) if not gone]
    return {axis: new for new, axis in enumerate(kept)}


def _alone(e: Emitter, physical: Var, shape: Sequence[int], place: int) -> tuple[Var, int]:
    """The value, its axes of `shape` as stored, in a view where the axis at `place` is one dimension: which."""
    before, after = math.prod(shape[:place]), math.prod(shape[place + 1 :])
    marks = ["before" if i < place else "after" if i > place else "axis" for i in range(len(shape))]
    big = [(size, mark) for size, mark in zip(shape, marks) if size != 1]
    template = _upright(physical.shape)
    view, cut = fit([s for s, _ in big], [m for _, m in big], (template,)) or (None, ())
    if view is None or cut.count("axis") != 1:
        if after == 1:
            view, cut = (1, before, 1, shape[place]), (None, None, None, "axis")
        else:
            view, cut = (1, before, shape[place], after), (None, None, "axis", None)
    return e.view(physical, view), cut.index("axis")


def _pieces_of(op: Op) -> list[range]:
    """For a slice: the entries that stay on each axis of x, in order."""
    shape = op.args["x"].shape
    begin = op.value("begin")
    if op.kind.name == "slice_by_size":
        starts = [b + n if b < 0 else b for b, n in zip(begin, shape)]
        return [range(b, n if s == -1 else b + s) for b, s, n in zip(starts, op.value("size"), shape)]
    rank = len(shape)
    end, stride = op.value("end"), op.value("stride") or (1,) * rank
    opened, closed, squeezed = (op.value(f"{key}_mask") or (False,) * rank for key in ("begin", "end", "squeeze"))
    return [
        range(begin[a] % n, begin[a] % n + 1)
        if squeezed[a]
        else range(n)[slice(None if opened[a] else begin[a], None if closed[a] else end[a], stride[a])]
        for a, n in enumerate(shape)
    ]


def _emit_slice(e: Emitter, op: Op, step: Step) -> None:
    """One axis after the other, those that keep least first."""
    x, (order,) = op.args["x"], step.reads
    shape = list(sizes(x.shape, order))
    physical = e.stored(x, order) if isinstance(x, Var) else e.b.identity(x=e.read(x, order, (1, 1, 1, x.type.size)))
    taken = _pieces_of(op)
    for axis in sorted(order, key=lambda axis: len(taken[axis]) / x.shape[axis]):
        keep, place = taken[axis], order.index(axis)
        if keep == range(x.shape[axis]):
            continue
        if keep.step < 0:
            raise CompileError(f"{op.name}: slice_by_index with stride {keep.step}: no program reverses an axis. Write a matmul.")
        physical, dim = _alone(e, physical, shape, place)
        begin, size = [0] * 4, list(physical.shape)
        begin[dim], size[dim] = keep.start, len(keep)
        if keep.step == 1:
            physical = e.b.slice_by_size(x=physical, begin=tuple(begin), size=tuple(size), name=op.output.name)
        else:
            end, stride = list(physical.shape), [1] * 4
            end[dim], stride[dim] = keep[-1] + 1, keep.step
            physical = e.b.slice_by_index(
                x=physical, begin=tuple(begin), end=tuple(end), stride=tuple(stride), name=op.output.name
            )
        shape[place] = len(keep)
    e.define(op.output, step.writes, physical)


def _concat_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Step]:
    for order in dict.fromkeys(_common_orders(op, orders)):
        yield Step(_read_along(op, order), order)


def _emit_concat(e: Emitter, op: Op, step: Step) -> None:
    if op.value("interleave", False):
        raise CompileError(f"{op.name}: concat that interleaves has no channels-first form. Write it as two matmuls.")
    axis = op.value("axis") % op.output.rank  # type: ignore[operator]
    whole = op.output.shape
    place = step.writes.index(axis) if axis in step.writes else 0
    before = math.prod(whole[a] for a in step.writes[:place])
    after = math.prod(whole[a] for a in step.writes[place + (axis in step.writes) :])
    reads = tuple(
        e.read(t, read, (1, before, t.shape[axis], after)) for t, read in zip(operands(op), step.reads)
    )  # fmt: skip
    e.define(op.output, step.writes, e.emit(op, reads, axis=2))


def _emit_pad(e: Emitter, op: Op, step: Step) -> None:
    """One axis after the other. Only constants are put in: reflections would need a gather."""
    if op.value("mode", "constant") != "constant":
        raise CompileError(f"{op.name}: pad with mode {op.value('mode')} has no channels-first form; only 'constant' has.")
    x, (order,) = op.args["x"], step.reads
    amounts = op.value("pad")
    lead = x.rank - len(amounts) // 2
    physical = e.stored(x, order) if isinstance(x, Var) else e.b.identity(x=e.read(x, order, (1, 1, 1, x.type.size)))
    axes = list(completed(order, natural(op.output.shape), ()))
    shape = list(sizes(x.shape, tuple(axes)))
    for place, axis in enumerate(axes):
        around = tuple(amounts[2 * (axis - lead) : 2 * (axis - lead) + 2]) if axis >= lead else (0, 0)
        if around == (0, 0):
            continue
        physical, dim = _alone(e, physical, shape, place)
        wide = [0] * 8
        wide[2 * dim : 2 * dim + 2] = around
        rest = {key: arg for key, arg in op.args.items() if key not in ("x", "pad")}
        physical = e.b.emit(op.kind, {"x": physical, "pad": tuple(wide), **rest}, op.output.name)[0]
        shape[place] += sum(around)
    e.define(op.output, step.writes, physical)


# --- conv -----------------------------------------------------------------------------------------------------


def _conv_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Step]:
    if op.output.rank != 4:
        raise CompileError(f"{op.name}: conv of {op.output.type} is not over two axes of space. Add axes of 1 by reshapes.")
    yield Step(tuple(natural(t.shape) for t in operands(op)), natural(op.output.shape))


def _emit_conv(e: Emitter, op: Op, step: Step) -> None:
    def as_is(tensor: Tensor, order: Order) -> Tensor:
        return tensor if isinstance(tensor, Literal) else e.read(tensor, order, tensor.shape)  # type: ignore[arg-type]

    reads = tuple(as_is(tensor, order) for tensor, order in zip(operands(op), step.reads))
    e.define(op.output, step.writes, e.emit(op, reads))


# --- the table ------------------------------------------------------------------------------------------------

#: In their families, and not element-wise: constants per channel meet axis 1.
_PER_CHANNEL = {"prelu", "softplus_parametric"}


def _kinds(*modules: object) -> set[str]:
    return {kind.name for module in modules for kind in vars(module).values() if isinstance(kind, OpKind)}


_ELEMENTWISE = (_kinds(elementwise, unary, activation) | {"cast"}) - _PER_CHANNEL
_REDUCTIONS = {name for name in _kinds(reduce) if "arg" not in name}

#: Ops that only give a value another name or shape.
MOVES = frozenset({"reshape", "squeeze", "expand_dims", "flatten2d", "transpose", "identity", "cast"})

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, Rule(_elementwise_options, _emit_elementwise, _elementwise_backward)),
    **dict.fromkeys(_REDUCTIONS, Rule(_reduce_options, _emit_reduce, _reduce_backward)),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims", "flatten2d"), Rule(_reshape_options, _emit_nothing, _reshape_backward)),
    **dict.fromkeys(("slice_by_size", "slice_by_index"), Rule(_same_order_options, _emit_slice, _same_order_backward)),
    "identity": Rule(_same_order_options, _emit_nothing, _same_order_backward),
    "matmul": Rule(layout_matmul.options, layout_matmul.emit),
    "softmax": Rule(_softmax_options, _emit_softmax, _softmax_backward),
    "transpose": Rule(_transpose_options, _emit_nothing, _transpose_backward),
    "concat": Rule(_concat_options, _emit_concat, _elementwise_backward),
    "pad": Rule(_same_order_options, _emit_pad, _same_order_backward),
    "conv": Rule(_conv_options, _emit_conv),
}
