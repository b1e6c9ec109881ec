"""Ops that move elements and compute nothing."""

import math

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.types import TensorType

reshape = OpKind("reshape")


@reshape.infers
def _(x: TensorType, shape: tuple[int, ...]) -> TensorType:
    """Row-major; one size may be -1, and 0 keeps the size of that axis."""
    if not x.is_fixed:
        return TensorType(x.dtype, tuple(None if size < 1 else size for size in shape))
    wanted = [x.shape[axis] if size == 0 and axis < x.rank else size for axis, size in enumerate(shape)]
    if -1 in wanted:
        rest = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = x.size // rest if rest else 0
    if math.prod(wanted) != x.size:
        raise CompileError(f"reshape: {x} has {x.size} elements and shape {tuple(shape)} does not.")
    return TensorType(x.dtype, tuple(wanted))


@reshape.evaluates
def _(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return x.reshape([x.shape[axis] if size == 0 and axis < x.ndim else size for axis, size in enumerate(shape)])


transpose = OpKind("transpose")


@transpose.infers
def _(x: TensorType, perm: tuple[int, ...]) -> TensorType:
    """Axis i of the result is axis perm[i] of x."""
    if sorted(axis % x.rank for axis in perm) != list(range(x.rank)):
        raise CompileError(f"transpose: perm {tuple(perm)} does not name each axis of x {x} once.")
    return TensorType(x.dtype, tuple(x.shape[axis] for axis in perm))


@transpose.evaluates
def _(x: np.ndarray, perm: tuple[int, ...]) -> np.ndarray:
    return x.transpose(perm)


slice_by_size = OpKind("slice_by_size")


@slice_by_size.infers
def _(x: TensorType, begin: tuple[int, ...], size: tuple[int, ...]) -> TensorType:
    """x[begin : begin + size] on every axis; a size of -1 goes to the end."""
    shape = []
    for axis, (start, count, whole) in enumerate(zip(begin, size, x.shape, strict=True)):
        if whole is not None and (start < 0 or start + max(count, 0) > whole):
            raise CompileError(f"slice_by_size: axis {axis} of x {x}: begin {start} and size {count} leave it.")
        shape.append((None if whole is None else whole - start) if count == -1 else count)
    return TensorType(x.dtype, tuple(shape))


@slice_by_size.evaluates
def _(x: np.ndarray, begin: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    return x[tuple(slice(b, None if s == -1 else b + s) for b, s in zip(begin, size, strict=True))]


concat = OpKind("concat", operands=("values",))


@concat.infers
def _(values: tuple[TensorType, ...], axis: int, interleave: bool = False) -> TensorType:
    first = values[0]
    axis %= first.rank
    for other in values[1:]:
        if other.rank != first.rank or any(
            a != b and None not in (a, b) for i, (a, b) in enumerate(zip(first.shape, other.shape)) if i != axis
        ):
            raise CompileError(f"concat: {first} and {other} differ outside axis {axis}.")
    sizes = [value.shape[axis] for value in values]
    total = None if None in sizes else sum(sizes)
    return TensorType(first.dtype, (*first.shape[:axis], total, *first.shape[axis + 1 :]))


@concat.evaluates
def _(values: tuple[np.ndarray, ...], axis: int, interleave: bool = False) -> np.ndarray:
    """With `interleave` the values take turns along the axis, element by element."""
    if not interleave:
        return np.concatenate(values, axis=axis)
    axis %= values[0].ndim
    stacked = np.stack(values, axis=axis + 1)
    return stacked.reshape(*values[0].shape[:axis], -1, *values[0].shape[axis + 1 :])
