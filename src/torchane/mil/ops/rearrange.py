"""Ops that trade one axis for others: depth for space, batch for space. Data (N, C, H, W).

Source: coremltools, mil/ops/defs/iOS15/tensor_transformation.py and iOS16 (pixel_unshuffle).
"""

from typing import Any

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import Sizes, require_float, require_length, require_rank
from torchane.mil.types import TensorType


def _parted(kind: str, x: TensorType, axis: int, by: int) -> int | None:
    """The size of an axis divided by `by`. Raises CompileError if that leaves a rest."""
    size = x.shape[axis]
    if size is not None and size % by:
        raise CompileError(f"{kind}: axis {axis} of x {x} is not a multiple of {by}.")
    return None if size is None else size // by


def _times(size: int | None, factor: int) -> int | None:
    return None if size is None else size * factor


def _require_factor(kind: str, name: str, x: TensorType, factor: int) -> None:
    require_float(kind, x=x)
    require_rank(kind, (4,), x=x)
    if factor < 1:
        raise CompileError(f"{kind}: {name} is {factor} and must be 1 or more.")


def _to_space(kind: str, x: TensorType, factor: int) -> TensorType:
    n, _, h, w = x.shape
    return TensorType(x.dtype, (n, _parted(kind, x, 1, factor * factor), _times(h, factor), _times(w, factor)))


def _to_depth(kind: str, x: TensorType, factor: int) -> TensorType:
    n, c, _, _ = x.shape
    shape: Sizes = (n, _times(c, factor * factor), _parted(kind, x, 2, factor), _parted(kind, x, 3, factor))
    return TensorType(x.dtype, shape)


depth_to_space = OpKind("depth_to_space")


@depth_to_space.infers
def _(x: TensorType, block_size: int) -> TensorType:
    """(N, b b C, H, W) -> (N, C, H b, W b): channel (i b + j) C + c goes to row i, column j of its block."""
    _require_factor("depth_to_space", "block_size", x, block_size)
    return _to_space("depth_to_space", x, block_size)


@depth_to_space.evaluates
def _(x: np.ndarray, block_size: int) -> np.ndarray:
    n, c, h, w = x.shape
    b = block_size
    blocks = x.reshape(n, b, b, c // (b * b), h, w)
    return blocks.transpose(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


space_to_depth = OpKind("space_to_depth")


@space_to_depth.infers
def _(x: TensorType, block_size: int) -> TensorType:
    """(N, C, H b, W b) -> (N, b b C, H, W), what depth_to_space undoes."""
    _require_factor("space_to_depth", "block_size", x, block_size)
    return _to_depth("space_to_depth", x, block_size)


@space_to_depth.evaluates
def _(x: np.ndarray, block_size: int) -> np.ndarray:
    n, c, h, w = x.shape
    b = block_size
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    return blocks.transpose(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


pixel_shuffle = OpKind("pixel_shuffle")


@pixel_shuffle.infers
def _(x: TensorType, upscale_factor: int) -> TensorType:
    """(N, C f f, H, W) -> (N, C, H f, W f): channel (c f + i) f + j goes to row i, column j. PyTorch's."""
    _require_factor("pixel_shuffle", "upscale_factor", x, upscale_factor)
    return _to_space("pixel_shuffle", x, upscale_factor)


@pixel_shuffle.evaluates
def _(x: np.ndarray, upscale_factor: int) -> np.ndarray:
    n, c, h, w = x.shape
    f = upscale_factor
    blocks = x.reshape(n, c // (f * f), f, f, h, w)
    return blocks.transpose(0, 1, 4, 2, 5, 3).reshape(n, c // (f * f), h * f, w * f)


pixel_unshuffle = OpKind("pixel_unshuffle")


@pixel_unshuffle.infers
def _(x: TensorType, downscale_factor: int) -> TensorType:
    """(N, C, H f, W f) -> (N, C f f, H, W), what pixel_shuffle undoes."""
    _require_factor("pixel_unshuffle", "downscale_factor", x, downscale_factor)
    return _to_depth("pixel_unshuffle", x, downscale_factor)


@pixel_unshuffle.evaluates
def _(x: np.ndarray, downscale_factor: int) -> np.ndarray:
    n, c, h, w = x.shape
    f = downscale_factor
    blocks = x.reshape(n, c, h // f, f, w // f, f)
    return blocks.transpose(0, 1, 3, 5, 2, 4).reshape(n, c * f * f, h // f, w // f)


def _require_blocks(kind: str, x: TensorType, block_shape: tuple[int, ...], name: str, pairs: tuple[Any, ...]) -> None:
    require_float(kind, x=x)
    require_rank(kind, (4,), x=x)
    require_length(kind, "block_shape", block_shape, 2, "height and width")
    require_length(kind, name, pairs, 2, "height and width")
    whole = [pair for pair in pairs if isinstance(pair, list) and [type(size) for size in pair] == [int, int]]
    if min(block_shape) < 1 or len(whole) < 2 or min(min(pair) for pair in whole) < 0:
        raise CompileError(f"{kind}: block_shape {block_shape} and {name} {pairs}; sizes are 1 or more, margins pairs.")


space_to_batch = OpKind("space_to_batch")


@space_to_batch.infers
def _(x: TensorType, block_shape: tuple[int, ...], paddings: tuple[Any, ...]) -> TensorType:
    """x is padded with zeros, and each place within a block becomes a batch of its own, the places outermost."""
    _require_blocks("space_to_batch", x, block_shape, "paddings", paddings)
    n, c, *space = x.shape
    sizes = [None if size is None else size + sum(pair) for size, pair in zip(space, paddings)]
    padded = TensorType(x.dtype, (n, c, *sizes))
    parts = [_parted("space_to_batch", padded, 2 + axis, block) for axis, block in enumerate(block_shape)]
    return TensorType(x.dtype, (_times(n, block_shape[0] * block_shape[1]), c, *parts))


@space_to_batch.evaluates
def _(x: np.ndarray, block_shape: tuple[int, ...], paddings: tuple[Any, ...]) -> np.ndarray:
    a, b = block_shape
    n, c, h, w = (padded := np.pad(x, [(0, 0), (0, 0), *map(tuple, paddings)])).shape
    blocks = padded.reshape(n, c, h // a, a, w // b, b)
    return blocks.transpose(3, 5, 0, 1, 2, 4).reshape(n * a * b, c, h // a, w // b)


batch_to_space = OpKind("batch_to_space")


@batch_to_space.infers
def _(x: TensorType, block_shape: tuple[int, ...], crops: tuple[Any, ...]) -> TensorType:
    """What space_to_batch does, undone; `crops` are cut off."""
    _require_blocks("batch_to_space", x, block_shape, "crops", crops)
    batch = _parted("batch_to_space", x, 0, block_shape[0] * block_shape[1])
    sizes = []
    for size, block, pair in zip(x.shape[2:], block_shape, crops):
        sizes.append(None if size is None else size * block - sum(pair))
        if sizes[-1] is not None and sizes[-1] < 1:
            raise CompileError(f"batch_to_space: crops {crops} leave nothing of x {x}.")
    return TensorType(x.dtype, (batch, x.shape[1], *sizes))


@batch_to_space.evaluates
def _(x: np.ndarray, block_shape: tuple[int, ...], crops: tuple[Any, ...]) -> np.ndarray:
    a, b = block_shape
    n, c, h, w = x.shape
    blocks = x.reshape(a, b, n // (a * b), c, h, w)
    space = blocks.transpose(2, 3, 4, 0, 5, 1).reshape(n // (a * b), c, h * a, w * b)
    (top, bottom), (left, right) = crops
    return space[:, :, top : h * a - bottom, left : w * b - right]
