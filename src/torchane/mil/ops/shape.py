"""Ops that give the elements of a tensor another shape, and join or part tensors; they compute nothing.

Source: coremltools, mil/ops/defs/iOS15/tensor_transformation.py, tensor_operation.py, iOS16 (reshape_like)
and iOS17 (zeros in the shape of reshape).
"""

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import (
    Sizes,
    fits,
    known_length,
    positive_axes,
    positive_axis,
    product,
    replaced,
    same_dtype,
)
from torchane.mil.types import INT32, TensorType

reshape = OpKind("reshape", dynamic=("shape",))


def _with_zeros_filled(given: Sizes, shape: tuple[int, ...]) -> list[int | None]:
    """A 0 keeps the size of x, both shapes counted from the end (iOS17; before, ranks had to be equal)."""
    wanted: list[int | None] = list(shape)
    for back in range(1, len(shape) + 1):
        if shape[-back] == 0:
            wanted[-back] = given[-back] if back <= len(given) else 1
    return wanted


@reshape.infers
def _(x: TensorType, shape: tuple[int, ...] | TensorType) -> TensorType:
    """Row-major; one size may be -1 (what is left), and 0 keeps the size of that axis."""
    if isinstance(shape, TensorType):
        return TensorType(x.dtype, (None,) * known_length("reshape", "shape", shape))
    if shape.count(-1) > 1 or any(size < -1 for size in shape):
        raise CompileError(f"reshape: shape {shape} for x {x}; sizes are positive, 0 (kept) or -1, and -1 comes once.")
    wanted = _with_zeros_filled(x.shape, shape)
    if -1 in wanted:
        hole = wanted.index(-1)
        whole, rest = product(x.shape), product(tuple(wanted[:hole] + wanted[hole + 1 :]))
        wanted[hole] = None if None in (whole, rest) else (whole // rest if rest else 0)
    sizes = tuple(wanted)
    if product(sizes) != product(x.shape) and None not in (product(sizes), product(x.shape)):
        raise CompileError(f"reshape: {x} has {x.size} elements and shape {shape} does not.")
    return TensorType(x.dtype, sizes)


@reshape.evaluates
def _(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return x.reshape(_with_zeros_filled(x.shape, shape))


reshape_like = OpKind("reshape_like", operands=("x", "ref_tensors"))


@reshape_like.infers
def _(
    x: TensorType,
    ref_tensors: tuple[TensorType, ...],
    begins: tuple[int, ...],
    ends: tuple[int, ...],
    end_masks: tuple[bool, ...],
) -> TensorType:
    """The new shape is what the pieces shape[begin:end] of the reference tensors give, joined."""
    if not len(ref_tensors) == len(begins) == len(ends) == len(end_masks):
        raise CompileError(
            f"reshape_like: {len(ref_tensors)} ref_tensors, {len(begins)} begins, {len(ends)} ends and "
            f"{len(end_masks)} end_masks; there must be one of each for every reference tensor."
        )
    shape = _like(tuple(ref.shape for ref in ref_tensors), begins, ends, end_masks)
    if product(shape) != product(x.shape) and None not in (product(shape), product(x.shape)):
        raise CompileError(f"reshape_like: {x} has {x.size} elements and the shape {shape} does not.")
    return TensorType(x.dtype, shape)


@reshape_like.evaluates
def _(
    x: np.ndarray,
    ref_tensors: tuple[np.ndarray, ...],
    begins: tuple[int, ...],
    ends: tuple[int, ...],
    end_masks: tuple[bool, ...],
) -> np.ndarray:
    return x.reshape(_like(tuple(ref.shape for ref in ref_tensors), begins, ends, end_masks))


def _like(shapes: tuple[Sizes, ...], begins: tuple[int, ...], ends: tuple[int, ...], masks: tuple[bool, ...]) -> Sizes:
    return tuple(
        size
        for shape, begin, end, to_the_end in zip(shapes, begins, ends, masks)
        for size in shape[begin : None if to_the_end else end]
    )


transpose = OpKind("transpose")


@transpose.infers
def _(x: TensorType, perm: tuple[int, ...]) -> TensorType:
    """Axis i of the result is axis perm[i] of x."""
    if len(perm) != x.rank or positive_axes("transpose", perm, x.rank) != tuple(range(x.rank)):
        raise CompileError(f"transpose: perm {perm} does not name each axis of x {x} once.")
    return TensorType(x.dtype, tuple(x.shape[axis] for axis in perm))


@transpose.evaluates
def _(x: np.ndarray, perm: tuple[int, ...]) -> np.ndarray:
    return x.transpose(perm)


expand_dims = OpKind("expand_dims")


@expand_dims.infers
def _(x: TensorType, axes: tuple[int, ...]) -> TensorType:
    """Axes of size 1, counted in the result."""
    new = positive_axes("expand_dims", axes, x.rank + len(axes))
    old = iter(x.shape)
    return TensorType(x.dtype, tuple(1 if axis in new else next(old) for axis in range(x.rank + len(axes))))


@expand_dims.evaluates
def _(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.expand_dims(x, axes)


squeeze = OpKind("squeeze")


def _gone(shape: Sizes, axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """The axes that go: those of size 1 among `axes`; others among them stay, as in PyTorch. An unknown size
    among named axes is taken to be 1, among all axes not to be."""
    sizes = (1,) if axes is None else (1, None)
    return tuple(axis for axis in positive_axes("squeeze", axes, len(shape)) if shape[axis] in sizes)


@squeeze.infers
def _(x: TensorType, axes: tuple[int, ...] | None = None) -> TensorType:
    gone = _gone(x.shape, axes)
    return TensorType(x.dtype, tuple(size for axis, size in enumerate(x.shape) if axis not in gone))


@squeeze.evaluates
def _(x: np.ndarray, axes: tuple[int, ...] | None = None) -> np.ndarray:
    return x.squeeze(_gone(x.shape, axes))


flatten2d = OpKind("flatten2d")


@flatten2d.infers
def _(x: TensorType, axis: int = 1) -> TensorType:
    """Two axes: the product of the sizes before `axis`, and of the others."""
    if not -x.rank <= axis <= x.rank:
        raise CompileError(f"flatten2d: axis {axis} for x {x}; it runs from {-x.rank} to {x.rank}.")
    return TensorType(x.dtype, (product(x.shape[:axis]), product(x.shape[axis:])))


@flatten2d.evaluates
def _(x: np.ndarray, axis: int = 1) -> np.ndarray:
    return x.reshape(product(x.shape[:axis]), product(x.shape[axis:]))


shape = OpKind("shape")


@shape.infers
def _(x: TensorType) -> TensorType:
    """The sizes of x, as a vector of int32."""
    return TensorType(INT32, (x.rank,))


@shape.evaluates
def _(x: np.ndarray) -> np.ndarray:
    return np.array(x.shape, np.int32)


concat = OpKind("concat", operands=("values",))


@concat.infers
def _(values: tuple[TensorType, ...], axis: int, interleave: bool = False) -> TensorType:
    """Joined along an axis that they have; scalars join to a vector."""
    if not values:
        raise CompileError("concat: values is empty; it joins one tensor or more.")
    same_dtype("concat", **{f"values[{index}]": value for index, value in enumerate(values)})
    shapes = [value.shape or (1,) for value in values]
    axis = positive_axis("concat", axis, len(shapes[0]))
    for value, other in zip(values, shapes):
        wanted = shapes[0] if interleave or len(other) <= axis else replaced(shapes[0], axis, other[axis])
        if not fits(other, wanted):
            where = "and the values take turns" if interleave else f"outside axis {axis}"
            raise CompileError(f"concat: {values[0]} and {value} differ {where}.")
    sizes = [other[axis] for other in shapes]
    return TensorType(values[0].dtype, replaced(_merged(shapes), axis, None if None in sizes else sum(sizes)))


def _merged(shapes: list[Sizes]) -> Sizes:
    """On every axis the first size that is known."""
    return tuple(next((size for size in sizes if size is not None), None) for sizes in zip(*shapes))


@concat.evaluates
def _(values: tuple[np.ndarray, ...], axis: int, interleave: bool = False) -> np.ndarray:
    """With `interleave` the values take turns along the axis, element by element."""
    values = tuple(np.atleast_1d(value) for value in values)
    if not interleave:
        return np.concatenate(values, axis=axis)
    axis %= values[0].ndim
    stacked = np.stack(values, axis=axis + 1)
    return stacked.reshape(*values[0].shape[:axis], -1, *values[0].shape[axis + 1 :])


stack = OpKind("stack", operands=("values",))


@stack.infers
def _(values: tuple[TensorType, ...], axis: int) -> TensorType:
    """Joined along a new axis, counted in the result."""
    if not values:
        raise CompileError("stack: values is empty; it joins one tensor or more.")
    same_dtype("stack", **{f"values[{index}]": value for index, value in enumerate(values)})
    for value in values:
        if not fits(value.shape, values[0].shape):
            raise CompileError(f"stack: {values[0]} and {value} differ; all values must have one shape.")
    axis = positive_axis("stack", axis, values[0].rank + 1)
    shape = _merged([value.shape for value in values])
    return TensorType(values[0].dtype, (*shape[:axis], len(values), *shape[axis:]))


@stack.evaluates
def _(values: tuple[np.ndarray, ...], axis: int) -> np.ndarray:
    return np.stack(values, axis=axis)


split = OpKind("split", dynamic=("split_sizes",))
_MOST_PARTS = 1 << 16  # a program names every part; more is a damaged file


@split.infers
def _(
    x: TensorType, axis: int, num_splits: int | None = None, split_sizes: tuple[int, ...] | TensorType | None = None
) -> tuple[TensorType, ...]:
    """Equal parts, or parts of the sizes given."""
    axis = positive_axis("split", axis, x.rank)
    whole = x.shape[axis]
    if isinstance(split_sizes, TensorType):
        sizes: Sizes = (None,) * known_length("split", "split_sizes", split_sizes)
    elif split_sizes is not None:
        sizes = split_sizes
        if num_splits not in (None, len(sizes)) or min(sizes, default=-1) < 0 or whole not in (None, sum(sizes)):
            raise CompileError(
                f"split: split_sizes {sizes} do not part axis {axis} of x {x}"
                + ("." if num_splits is None else f" in {num_splits}.")
            )
    else:
        if num_splits is None or not 1 <= num_splits <= _MOST_PARTS or (whole is not None and whole % num_splits):
            raise CompileError(f"split: axis {axis} of x {x} does not part in {num_splits} equal parts.")
        sizes = (None if whole is None else whole // num_splits,) * num_splits
    return tuple(TensorType(x.dtype, replaced(x.shape, axis, size)) for size in sizes)


@split.evaluates
def _(
    x: np.ndarray, axis: int, num_splits: int | None = None, split_sizes: tuple[int, ...] | None = None
) -> tuple[np.ndarray, ...]:
    if split_sizes is None:
        return tuple(np.split(x, num_splits, axis=axis))
    return tuple(np.split(x, np.cumsum(split_sizes)[:-1], axis=axis))
