"""Ops that cut pieces out of a tensor, or put it into a larger one: slices, padding, tiling, reversal.

Source: coremltools, mil/ops/defs/iOS15/tensor_transformation.py, tensor_operation.py (pad, tile),
image_resizing.py (crop) and iOS18/tensor_transformation.py (slice_update).
"""

from collections.abc import Sequence

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import (
    Sizes,
    positive_axes,
    positive_axis,
    replaced,
    require_choice,
    require_float,
    require_integer,
    require_length,
    require_shape,
)
from torchane.mil.types import TensorType

slice_by_size = OpKind("slice_by_size", dynamic=("begin", "size"))


@slice_by_size.infers
def _(x: TensorType, begin: tuple[int, ...] | TensorType, size: tuple[int, ...] | TensorType) -> TensorType:
    """x[begin : begin + size] on every axis; a size of -1 goes to the end, a negative begin counts from it."""
    if isinstance(size, TensorType):
        return TensorType(x.dtype, (None,) * x.rank)
    begins: Sequence[int | None] = (None,) * x.rank if isinstance(begin, TensorType) else begin
    require_length("slice_by_size", "begin", begins, x.rank, f"x {x}")
    require_length("slice_by_size", "size", size, x.rank, f"x {x}")
    shape: list[int | None] = []
    for axis, (start, count, whole) in enumerate(zip(begins, size, x.shape)):
        if start is not None and start < 0:
            start = None if whole is None else start + whole
        if count < -1 or (start is not None and whole is not None and not 0 <= start <= whole - max(count, 0)):
            raise CompileError(f"slice_by_size: axis {axis} of x {x}: begin {begins[axis]} and size {count} leave it.")
        shape.append(count if count >= 0 else None if None in (start, whole) else whole - start)
    return TensorType(x.dtype, tuple(shape))


@slice_by_size.evaluates
def _(x: np.ndarray, begin: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    starts = [start + whole if start < 0 else start for start, whole in zip(begin, x.shape)]
    return x[tuple(slice(b, None if s == -1 else b + s) for b, s in zip(starts, size, strict=True))]


slice_by_index = OpKind("slice_by_index", dynamic=("begin", "end"))
_Flags = tuple[bool, ...] | None


def _slices(
    rank: int,
    begin: Sequence[int],
    end: Sequence[int],
    stride: Sequence[int] | None,
    masks: tuple[_Flags, _Flags, _Flags],
) -> tuple[slice | int, ...]:
    """What NumPy would be asked: masks open a slice at that side, and squeeze_mask takes one entry."""
    from_start, to_end, squeezed = (mask or (False,) * rank for mask in masks)
    return tuple(
        (0 if from_start[axis] else begin[axis])
        if squeezed[axis]
        else slice(
            None if from_start[axis] else begin[axis],
            None if to_end[axis] else end[axis],
            1 if stride is None else stride[axis],
        )
        for axis in range(rank)
    )


def _sliced(whole: int | None, piece: slice | int) -> Sizes:
    """The size of a slice of an axis; nothing for a single entry."""
    if isinstance(piece, int):
        return ()
    if whole is not None:
        return (len(range(*piece.indices(whole))),)
    if piece.start is None and piece.stop is None and piece.step in (1, -1):
        return (None,)
    same_side = piece.start is not None and piece.stop is not None and (piece.start < 0) == (piece.stop < 0)
    if same_side and len(range(piece.start, piece.stop, piece.step)) <= 1:
        return (len(range(piece.start, piece.stop, piece.step)),)
    if piece.stop is None and (piece.start, piece.step > 0) in ((-1, True), (0, False)):
        return (1,)
    return (None,)


def _sliced_shape(
    kind: str,
    x: TensorType,
    begin: tuple[int, ...] | TensorType,
    end: tuple[int, ...] | TensorType,
    stride: tuple[int, ...] | None,
    masks: tuple[_Flags, _Flags, _Flags],
) -> Sizes:
    """The shape of x[begin:end:stride] with its masks. Raises CompileError for lists of another length."""
    for name, values in (
        ("stride", stride),
        ("begin_mask", masks[0]),
        ("end_mask", masks[1]),
        ("squeeze_mask", masks[2]),
    ):
        if values is not None:
            require_length(kind, name, values, x.rank, f"x {x}")
    if stride is not None and 0 in stride:
        raise CompileError(f"{kind}: stride {stride} for x {x}; a stride is never 0.")
    if isinstance(begin, TensorType) or isinstance(end, TensorType):
        squeezed = masks[2] or (False,) * x.rank
        from_start, to_end = (mask or (False,) * x.rank for mask in masks[:2])
        steps = stride or (1,) * x.rank
        return tuple(
            len(range(0, size, abs(steps[axis]))) if from_start[axis] and to_end[axis] and size is not None else None
            for axis, size in enumerate(x.shape)
            if not squeezed[axis]
        )
    require_length(kind, "begin", begin, x.rank, f"x {x}")
    require_length(kind, "end", end, x.rank, f"x {x}")
    pieces = _slices(x.rank, begin, end, stride, masks)
    for axis, (whole, piece) in enumerate(zip(x.shape, pieces)):
        if isinstance(piece, int) and whole is not None and not -whole <= piece < whole:
            raise CompileError(f"{kind}: axis {axis} of x {x} has no entry {piece}.")
    return tuple(size for whole, piece in zip(x.shape, pieces) for size in _sliced(whole, piece))


@slice_by_index.infers
def _(
    x: TensorType,
    begin: tuple[int, ...] | TensorType,
    end: tuple[int, ...] | TensorType,
    stride: tuple[int, ...] | None = None,
    begin_mask: tuple[bool, ...] | None = None,
    end_mask: tuple[bool, ...] | None = None,
    squeeze_mask: tuple[bool, ...] | None = None,
) -> TensorType:
    """x[begin:end:stride] on every axis, as Python slices; begin_mask and end_mask take that side to the end,
    squeeze_mask takes the one entry at begin and drops the axis."""
    masks = (begin_mask, end_mask, squeeze_mask)
    return TensorType(x.dtype, _sliced_shape("slice_by_index", x, begin, end, stride, masks))


@slice_by_index.evaluates
def _(
    x: np.ndarray,
    begin: tuple[int, ...],
    end: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    begin_mask: tuple[bool, ...] | None = None,
    end_mask: tuple[bool, ...] | None = None,
    squeeze_mask: tuple[bool, ...] | None = None,
) -> np.ndarray:
    return x[_slices(x.ndim, begin, end, stride, (begin_mask, end_mask, squeeze_mask))]


slice_update = OpKind("slice_update", operands=("x", "update"), dynamic=("begin", "end"))


@slice_update.infers
def _(
    x: TensorType,
    update: TensorType,
    begin: tuple[int, ...] | TensorType,
    end: tuple[int, ...] | TensorType,
    stride: tuple[int, ...] | None = None,
    begin_mask: tuple[bool, ...] | None = None,
    end_mask: tuple[bool, ...] | None = None,
    squeeze_mask: tuple[bool, ...] | None = None,
) -> TensorType:
    """x with the piece that slice_by_index would take replaced by update."""
    masks = (begin_mask, end_mask, squeeze_mask)
    if update.rank == 0:
        raise CompileError(f"slice_update: update is {update}; a scalar is not taken, expand_dims it first.")
    require_shape("slice_update", _sliced_shape("slice_update", x, begin, end, stride, masks), update=update)
    return x


@slice_update.evaluates
def _(
    x: np.ndarray,
    update: np.ndarray,
    begin: tuple[int, ...],
    end: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    begin_mask: tuple[bool, ...] | None = None,
    end_mask: tuple[bool, ...] | None = None,
    squeeze_mask: tuple[bool, ...] | None = None,
) -> np.ndarray:
    result = x.copy()
    result[_slices(x.ndim, begin, end, stride, (begin_mask, end_mask, squeeze_mask))] = update
    return result


pad = OpKind("pad", dynamic=("pad",))


@pad.infers
def _(
    x: TensorType, pad: tuple[int, ...] | TensorType, mode: str = "constant", constant_val: float = 0.0
) -> TensorType:
    """`pad` holds before and after for the last len(pad) / 2 axes, in order; the others are left as they are."""
    require_choice("pad", "mode", mode, ("constant", "reflect", "replicate"))
    if isinstance(pad, TensorType):
        require_shape("pad", (2 * x.rank,), pad=pad)
        return TensorType(x.dtype, (None,) * x.rank)
    if len(pad) % 2 or len(pad) > 2 * x.rank or min(pad, default=0) < 0:
        raise CompileError(f"pad: pad {pad} for x {x}; it holds a pair of sizes, 0 or more, for each padded axis.")
    shape = list(x.shape)
    for axis, (before, after) in enumerate(_pairs(x.rank, pad)):
        size = shape[axis]
        if mode == "reflect" and size is not None and max(before, after) >= size:
            raise CompileError(f"pad: axis {axis} of x {x} is too short to reflect {max(before, after)} entries.")
        shape[axis] = None if size is None else size + before + after
    return TensorType(x.dtype, tuple(shape))


def _pairs(rank: int, pad: tuple[int, ...]) -> list[tuple[int, int]]:
    pairs = list(zip(pad[::2], pad[1::2]))
    return [(0, 0)] * (rank - len(pairs)) + pairs


@pad.evaluates
def _(x: np.ndarray, pad: tuple[int, ...], mode: str = "constant", constant_val: float = 0.0) -> np.ndarray:
    if mode == "constant":
        return np.pad(x, _pairs(x.ndim, pad), constant_values=constant_val)
    return np.pad(x, _pairs(x.ndim, pad), "edge" if mode == "replicate" else "reflect")


tile = OpKind("tile", dynamic=("reps",))


@tile.infers
def _(x: TensorType, reps: tuple[int, ...] | TensorType) -> TensorType:
    """The whole of x repeated reps[i] times along axis i."""
    if isinstance(reps, TensorType):
        return TensorType(x.dtype, (None,) * x.rank)
    if len(reps) != x.rank or min(reps, default=1) < 1:
        raise CompileError(f"tile: reps {reps} for x {x}; there is one count, 1 or more, for each axis.")
    return TensorType(x.dtype, tuple(None if size is None else size * count for size, count in zip(x.shape, reps)))


@tile.evaluates
def _(x: np.ndarray, reps: tuple[int, ...]) -> np.ndarray:
    return np.tile(x, reps)


reverse = OpKind("reverse")


@reverse.infers
def _(x: TensorType, axes: tuple[int, ...] | None = None) -> TensorType:
    """Back to front along the axes; all of them if none are named."""
    positive_axes("reverse", axes, x.rank)
    return x


@reverse.evaluates
def _(x: np.ndarray, axes: tuple[int, ...] | None = None) -> np.ndarray:
    return np.flip(x, axes)


reverse_sequence = OpKind("reverse_sequence", operands=("x", "lengths"))


@reverse_sequence.infers
def _(x: TensorType, lengths: TensorType, seq_axis: int = 0, batch_axis: int = 0) -> TensorType:
    """For each i along batch_axis, the first lengths[i] entries along seq_axis back to front."""
    require_integer("reverse_sequence", lengths=lengths)
    along = positive_axis("reverse_sequence", seq_axis, x.rank, "seq_axis")
    batch = positive_axis("reverse_sequence", batch_axis, x.rank, "batch_axis")
    if along == batch:
        raise CompileError(f"reverse_sequence: seq_axis and batch_axis are both {along}, for x {x}.")
    require_shape("reverse_sequence", (x.shape[batch],), lengths=lengths)
    return x


@reverse_sequence.evaluates
def _(x: np.ndarray, lengths: np.ndarray, seq_axis: int = 0, batch_axis: int = 0) -> np.ndarray:
    moved = np.moveaxis(x, (batch_axis, seq_axis), (0, 1)).copy()
    for row, length in zip(moved, lengths):
        row[:length] = row[:length][::-1].copy()
    return np.moveaxis(moved, (0, 1), (batch_axis, seq_axis))


sliding_windows = OpKind("sliding_windows")


@sliding_windows.infers
def _(x: TensorType, axis: int, size: int, stride: int = 1) -> TensorType:
    """All windows of `size` entries along the axis, `stride` apart; the window is a new axis after it."""
    axis = positive_axis("sliding_windows", axis, x.rank)
    whole = x.shape[axis]
    if size < 1 or stride < 1 or (whole is not None and whole < size):
        raise CompileError(f"sliding_windows: windows of {size}, {stride} apart, do not fit axis {axis} of x {x}.")
    count = None if whole is None else (whole - size) // stride + 1
    return TensorType(x.dtype, replaced(x.shape, axis, count, size))


@sliding_windows.evaluates
def _(x: np.ndarray, axis: int, size: int, stride: int = 1) -> np.ndarray:
    axis %= x.ndim
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis)
    return np.moveaxis(windows, -1, axis + 1)[(slice(None),) * axis + (slice(None, None, stride),)]


crop = OpKind("crop")


@crop.infers
def _(x: TensorType, crop_height: tuple[int, ...], crop_width: tuple[int, ...]) -> TensorType:
    """Entries dropped before and after, on the last two axes."""
    require_float("crop", x=x)
    shape = list(x.shape)
    for name, axis, pair in (("crop_height", -2, crop_height), ("crop_width", -1, crop_width)):
        require_length("crop", name, pair, 2, "before and after")
        if x.rank < 3 or min(pair) < 0 or (shape[axis] is not None and sum(pair) >= shape[axis]):
            raise CompileError(f"crop: {name} {pair} leaves nothing of x {x}, or it has fewer than three axes.")
        shape[axis] = None if shape[axis] is None else shape[axis] - sum(pair)
    return TensorType(x.dtype, tuple(shape))


@crop.evaluates
def _(x: np.ndarray, crop_height: tuple[int, ...], crop_width: tuple[int, ...]) -> np.ndarray:
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]
