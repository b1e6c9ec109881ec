"""Parts of tensors, and tensors from parts: slice, select, split, cat, pad, and their gradients.

A slice with step 1 is slice_by_size; the gradient of a part is the part between zeros, a pad.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from torchane.capture.rules import common
from torchane.capture.rules.registry import NoRule, Value, lowers
from torchane.mil.build import Builder

aten = torch.ops.aten


def part(b: Builder, x: Value, axis: int, begin: int, size: int) -> Value:
    """x[begin : begin + size] along one axis; x itself where that is all of it."""
    shape = common.sizes(x)
    if size == shape[axis]:
        return x
    starts = [0] * len(shape)
    starts[axis] = begin
    wanted = (*shape[:axis], size, *shape[axis + 1 :])
    value = common.uniform(x)
    if value is not None:
        return common.filled(wanted, value, common.dtype_of(x))
    return b.slice_by_size(x=x, begin=tuple(starts), size=wanted)


def padded(b: Builder, x: Value, axis: int, before: int, after: int, value: float = 0.0) -> Value:
    """x between `before` and `after` entries of `value` along one axis."""
    return padded_all(b, x, {axis: (before, after)}, value)


def padded_all(b: Builder, x: Value, amounts: dict[int, tuple[int, int]], value: float = 0.0) -> Value:
    """x with axis -> (before, after) entries of `value` added; negative amounts cut off instead."""
    for axis, (before, after) in amounts.items():
        cut = max(-before, 0)
        x = part(b, x, axis, cut, common.sizes(x)[axis] - cut - max(-after, 0))
    added = {axis: (max(before, 0), max(after, 0)) for axis, (before, after) in amounts.items()}
    if not any(before or after for before, after in added.values()):
        return x
    flat = tuple(count for axis in range(len(x.shape)) for count in added.get(axis, (0, 0)))
    return b.pad(x=x, pad=flat, mode="constant", constant_val=common.number(value, common.dtype_of(x)))


def _range(size: int, start: int | None, end: int | None, step: int) -> range:
    return range(size)[slice(start, end, step)]


@lowers(aten.slice.Tensor)
def slice_(
    b: Builder, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    shape = common.sizes(x)
    axis = common.axis_of(dim, len(shape))
    taken = _range(shape[axis], start, end, step)
    if step == 1:
        return part(b, x, axis, taken.start, len(taken))
    return every(b, x, axis, taken.start, step, len(taken))


def every(b: Builder, x: Value, axis: int, begin: int, step: int, count: int) -> Value:
    """x[begin], x[begin + step], ... along one axis, `count` of them. With a step the axis, made a multiple
    of it long, splits into (whole steps, place within a step): engines take no strided slice."""
    if step == 1:
        return part(b, x, axis, begin, count)
    x = padded(b, x, axis, 0, -common.sizes(x)[axis] % step)
    shape = common.sizes(x)
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    split = common.reshaped(b, x, (before, shape[axis] // step, step, after))
    taken = part(b, part(b, split, 2, begin % step, 1), 1, begin // step, count)
    return common.reshaped(b, taken, (*shape[:axis], count, *shape[axis + 1 :]))


@lowers(aten.slice_backward.default)
def slice_backward(
    b: Builder, grad: Value, input_sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Value:
    axis = common.axis_of(dim, len(input_sizes))
    return put_back(b, grad, axis, input_sizes[axis], _range(input_sizes[axis], start, end, step))


def put_back(b: Builder, grad: Value, axis: int, size: int, places: range) -> Value:
    """A tensor with `size` entries along `axis`: those of `grad` at `places`, zeros elsewhere."""
    if places.step == 1:
        return padded(b, grad, axis, places.start, size - places.stop if len(places) else size)
    shape = common.sizes(grad)  # step s: each entry and s - 1 zeros behind it, then the ends trimmed
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    spaced = padded(b, common.reshaped(b, grad, (before, shape[axis], 1, after)), 2, 0, places.step - 1)
    spaced = common.reshaped(b, spaced, (before, shape[axis] * places.step, after))
    whole = padded(b, spaced, 1, places.start, size - places.start - shape[axis] * places.step)
    return common.reshaped(b, whole, (*shape[:axis], size, *shape[axis + 1 :]))


@lowers(aten.slice_scatter.default)
def slice_scatter(
    b: Builder,
    x: Value,
    source: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    shape = common.sizes(x)
    axis = common.axis_of(dim, len(shape))
    places = _range(shape[axis], start, end, step)
    put = put_back(b, source, axis, shape[axis], places)
    if common.uniform(x) == 0 or len(places) == shape[axis]:
        return put
    kept = np.ones([size if index == axis else 1 for index, size in enumerate(shape)])
    np.moveaxis(kept, axis, 0)[list(places)] = 0
    return b.add(x=b.mul(x=x, y=common.constant(kept, common.dtype_of(x))), y=put)


@lowers(aten.select.int)
def select(b: Builder, x: Value, dim: int, index: int) -> Value:
    shape = common.sizes(x)
    axis = common.axis_of(dim, len(shape))
    taken = part(b, x, axis, index % shape[axis], 1)
    return common.reshaped(b, taken, shape[:axis] + shape[axis + 1 :])


@lowers(aten.select_backward.default)
def select_backward(b: Builder, grad: Value, input_sizes: Sequence[int], dim: int, index: int) -> Value:
    axis = common.axis_of(dim, len(input_sizes))
    size = input_sizes[axis]
    row = common.reshaped(b, grad, (*input_sizes[:axis], 1, *input_sizes[axis + 1 :]))
    return padded(b, row, axis, index % size, size - 1 - index % size)


@lowers(aten.select_scatter.default)
def select_scatter(b: Builder, x: Value, source: Value, dim: int, index: int) -> Value:
    axis = common.axis_of(dim, len(x.shape))
    place = index % common.sizes(x)[axis]
    row = common.reshaped(b, source, (*common.sizes(x)[:axis], 1, *common.sizes(x)[axis + 1 :]))
    return slice_scatter(b, x, row, axis, place, place + 1)


@lowers(aten.split_with_sizes.default)
def split_with_sizes(b: Builder, x: Value, split_sizes: Sequence[int], dim: int = 0) -> tuple[Value, ...]:
    axis = common.axis_of(dim, len(x.shape))
    starts = [sum(split_sizes[:i]) for i in range(len(split_sizes))]
    return tuple(part(b, x, axis, start, size) for start, size in zip(starts, split_sizes))


@lowers(aten.split.Tensor)
def split(b: Builder, x: Value, split_size: int, dim: int = 0) -> tuple[Value, ...]:
    whole = common.sizes(x)[common.axis_of(dim, len(x.shape))]
    return split_with_sizes(b, x, [min(split_size, whole - at) for at in range(0, whole, split_size)], dim)


@lowers(aten.unbind.int)
def unbind(b: Builder, x: Value, dim: int = 0) -> tuple[Value, ...]:
    return tuple(select(b, x, dim, index) for index in range(common.sizes(x)[common.axis_of(dim, len(x.shape))]))


@lowers(aten.cat.default)
def cat(b: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    tensors = [x for x in tensors if x.shape != (0,)]  # torch lets an empty vector join anything
    if len(tensors) == 1:
        return tensors[0]
    return b.concat(values=tuple(tensors), axis=common.axis_of(dim, len(tensors[0].shape)))


@lowers(aten.stack.default)
def stack(b: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    rank = len(tensors[0].shape) + 1
    axis = dim % rank
    shape = common.sizes(tensors[0])
    rows = [common.reshaped(b, x, (*shape[:axis], 1, *shape[axis:])) for x in tensors]
    return cat(b, rows, axis)


@lowers(aten.constant_pad_nd.default)
def constant_pad_nd(b: Builder, x: Value, pad: Sequence[int], value: float = 0) -> Value:
    """`pad` names the last axis first, as torch has it."""
    rank = len(x.shape)
    return padded_all(b, x, {rank - 1 - i: (pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)}, value)


@lowers(aten.flip.default)
def flip(b: Builder, x: Value, dims: Sequence[int]) -> Value:
    axes = tuple(common.axis_of(dim, len(x.shape)) for dim in dims)
    return b.reverse(x=x, axes=axes) if axes and x.shape else x


@lowers(aten.roll.default)
def roll(b: Builder, x: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    """The last entries come first: two parts of each axis, swapped."""
    if not dims:
        return common.reshaped(b, roll(b, common.reshaped(b, x, (-1,)), shifts, (0,)), common.sizes(x))
    for shift, dim in zip(shifts, dims, strict=True):
        axis = common.axis_of(dim, len(x.shape))
        size = common.sizes(x)[axis]
        turn = shift % size
        if turn:
            x = cat(b, (part(b, x, axis, size - turn, turn), part(b, x, axis, 0, size - turn)), axis)
    return x


@lowers(aten.unfold.default)
def unfold(b: Builder, x: Value, dimension: int, size: int, step: int) -> Value:
    """Windows along an axis, each with its entries on a new last axis: a product with a 0/1 matrix."""
    if not x.shape:
        return common.reshaped(b, x, (size,))
    shape = common.sizes(x)
    axis = common.axis_of(dimension, len(shape))
    count = (shape[axis] - size) // step + 1
    if count * size * shape[axis] > 2**22:
        raise NoRule(f"unfold: {count} windows of {size} out of {shape[axis]} want too large a constant.")
    picks = np.zeros((shape[axis], count * size))
    picks[(np.arange(count)[:, None] * step + np.arange(size)).ravel(), np.arange(count * size)] = 1
    last = [i for i in range(len(shape)) if i != axis]
    rows = common.permuted(b, x, [*last, axis])
    windows = b.matmul(x=common.reshaped(b, rows, (-1, shape[axis])), y=common.constant(picks, common.dtype_of(x)))
    windows = common.reshaped(b, windows, (*(shape[i] for i in last), count, size))
    rank = len(shape)
    return common.permuted(b, windows, [*range(axis), rank - 1, *range(axis, rank - 1), rank])
