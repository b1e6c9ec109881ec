"""Other sizes for the last axes of an image, by linear interpolation or the nearest neighbour.

Along one axis of X entries, result i of Y lies at a place of the grid [0, X - 1]:

    STRICT_ALIGN_CORNERS  i (X - 1) / (Y - 1)            ALIGN_CORNERS    the same, and (X - 1) / 2 if Y is 1
    UNALIGN_CORNERS       (i + 1/2) X / Y - 1/2          DEFAULT          i X / Y
    OFFSET_CORNERS        (i + 1/2) max(1, X - 1) / Y

Source: coremltools, mil/ops/defs/iOS15/image_resizing.py, iOS16 (half_pixel_centers) and iOS17 (resize).
"""

import math

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import Sizes, known_length, require_choice, require_float, require_numbers
from torchane.mil.types import TensorType

SAMPLING_MODES = ("DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "OFFSET_CORNERS", "UNALIGN_CORNERS")


def grid(size: float, count: int, mode: str) -> np.ndarray:
    """Where the `count` results lie in an axis of `size` entries, before they are kept within it."""
    i = np.arange(count)
    if mode == "ALIGN_CORNERS" and count == 1:
        return np.array([(size - 1) / 2])
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        return i * ((size - 1) / max(1, count - 1))
    if mode == "OFFSET_CORNERS":
        return (i + 0.5) * max(1, size - 1) / count
    return i * size / count if mode == "DEFAULT" else (i + 0.5) * size / count - 0.5


def linear(x: np.ndarray, axis: int, places: np.ndarray) -> np.ndarray:
    """x at fractional places along an axis; a place outside counts as the nearest end."""
    places = np.clip(places, 0, x.shape[axis] - 1)
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, x.shape[axis] - 1)
    share = (places - below).reshape([-1 if other == axis % x.ndim else 1 for other in range(x.ndim)])
    return np.take(x, below, axis) * (1 - share) + np.take(x, above, axis) * share


def nearest(x: np.ndarray, axis: int, places: np.ndarray) -> np.ndarray:
    """x at the whole places along an axis, kept within it."""
    return np.take(x, np.clip(places, 0, x.shape[axis] - 1).astype(np.int64), axis)


_LARGEST = 1 << 24  # sizes and factors beyond this are those of a damaged file


def _require_image(kind: str, x: TensorType, *sizes: float) -> None:
    require_float(kind, x=x)
    if x.rank < 3 or not all(0 < size < _LARGEST for size in sizes):
        raise CompileError(
            f"{kind}: x is {x} and the sizes or factors are {sizes}; it takes rank 3 or more, "
            f"and what is above 0 and below {_LARGEST}."
        )


def _scaled(x: TensorType, height: float, width: float) -> TensorType:
    h, w = x.shape[-2:]
    sizes: Sizes = (None if h is None else math.floor(h * height), None if w is None else math.floor(w * width))
    return TensorType(x.dtype, (*x.shape[:-2], *sizes))


upsample_nearest_neighbor = OpKind("upsample_nearest_neighbor")


@upsample_nearest_neighbor.infers
def _(x: TensorType, scale_factor_height: float = 1, scale_factor_width: float = 1) -> TensorType:
    """(..., H, W) -> (..., floor(H * factor), floor(W * factor)); result i is entry floor(i X / Y)."""
    _require_image("upsample_nearest_neighbor", x, scale_factor_height, scale_factor_width)
    return _scaled(x, scale_factor_height, scale_factor_width)


@upsample_nearest_neighbor.evaluates
def _(x: np.ndarray, scale_factor_height: float = 1, scale_factor_width: float = 1) -> np.ndarray:
    for axis, factor in ((-2, scale_factor_height), (-1, scale_factor_width)):
        count = math.floor(x.shape[axis] * factor)
        x = nearest(x, axis, np.arange(count) * x.shape[axis] // count)
    return x


resize_nearest_neighbor = OpKind("resize_nearest_neighbor")


@resize_nearest_neighbor.infers
def _(x: TensorType, target_size_height: int, target_size_width: int) -> TensorType:
    """(..., H, W) -> (..., target height, target width); result i is entry floor(i X / Y)."""
    _require_image("resize_nearest_neighbor", x, target_size_height, target_size_width)
    return TensorType(x.dtype, (*x.shape[:-2], target_size_height, target_size_width))


@resize_nearest_neighbor.evaluates
def _(x: np.ndarray, target_size_height: int, target_size_width: int) -> np.ndarray:
    for axis, count in ((-2, target_size_height), (-1, target_size_width)):
        x = nearest(x, axis, np.arange(count) * x.shape[axis] // count)
    return x


upsample_bilinear = OpKind("upsample_bilinear")


@upsample_bilinear.infers
def _(
    x: TensorType,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> TensorType:
    """(..., H, W) -> (..., floor(H * factor), floor(W * factor)). half_pixel_centers (iOS16) is the opposite of
    align_corners unless said; the grid is STRICT_ALIGN_CORNERS, UNALIGN_CORNERS, or DEFAULT if neither holds."""
    _require_image("upsample_bilinear", x, scale_factor_height, scale_factor_width)
    if align_corners and half_pixel_centers:
        raise CompileError("upsample_bilinear: align_corners and half_pixel_centers are both true; only one may be.")
    return _scaled(x, scale_factor_height, scale_factor_width)


@upsample_bilinear.evaluates
def _(
    x: np.ndarray,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> np.ndarray:
    centred = not align_corners if half_pixel_centers is None else half_pixel_centers
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if centred else "DEFAULT"
    for axis, factor in ((-2, scale_factor_height), (-1, scale_factor_width)):
        x = linear(x, axis, grid(x.shape[axis], math.floor(x.shape[axis] * factor), mode))
    return x


resize_bilinear = OpKind("resize_bilinear")


@resize_bilinear.infers
def _(
    x: TensorType, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> TensorType:
    """(..., H, W) -> (..., target height, target width)."""
    _require_image("resize_bilinear", x, target_size_height, target_size_width)
    require_choice("resize_bilinear", "sampling_mode", sampling_mode, SAMPLING_MODES)
    return TensorType(x.dtype, (*x.shape[:-2], target_size_height, target_size_width))


@resize_bilinear.evaluates
def _(
    x: np.ndarray, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> np.ndarray:
    for axis, count in ((-2, target_size_height), (-1, target_size_width)):
        x = linear(x, axis, grid(x.shape[axis], count, sampling_mode))
    return x


resize = OpKind("resize", dynamic=("shape",))


@resize.infers
def _(
    x: TensorType,
    shape: tuple[int, ...] | TensorType,
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> TensorType:
    """The last `resized_dims` axes to the last sizes of `shape`; a size of 0 keeps that of x."""
    require_numbers("resize", x=x)
    require_choice("resize", "interpolation_mode", interpolation_mode, ("LINEAR", "NEAREST_NEIGHBOR"))
    require_choice("resize", "sampling_mode", sampling_mode, SAMPLING_MODES)
    count = known_length("resize", "shape", shape) if isinstance(shape, TensorType) else len(shape)
    if not 0 <= resized_dims <= count <= x.rank or (isinstance(shape, tuple) and min(shape, default=0) < 0):
        raise CompileError(
            f"resize: resized_dims {resized_dims} and shape {shape} for x {x}; each is no more than the next, and "
            "a size is 0 or more."
        )
    if isinstance(shape, TensorType):
        return TensorType(x.dtype, (*x.shape[: x.rank - resized_dims], *(None,) * resized_dims))
    return TensorType(x.dtype, _resized(x.shape, shape, resized_dims))


def _resized(given: Sizes, shape: tuple[int, ...], resized_dims: int) -> Sizes:
    kept = len(given) - resized_dims
    wanted = shape[len(shape) - resized_dims :]
    return (*given[:kept], *(new or old for new, old in zip(wanted, given[kept:])))


@resize.evaluates
def _(
    x: np.ndarray,
    shape: tuple[int, ...],
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> np.ndarray:
    """The nearest neighbour is that of the place on the grid, a half going up."""
    for axis, count in enumerate(_resized(x.shape, shape, resized_dims)):
        if axis >= x.ndim - resized_dims:
            places = grid(x.shape[axis], count, sampling_mode)
            x = linear(x, axis, places) if interpolation_mode == "LINEAR" else nearest(x, axis, np.floor(places + 0.5))
    return x
