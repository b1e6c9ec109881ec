"""Ops that pick entries by index, and put them there.

An index counts from the end if negative, which validate_indices (iOS17) refuses. One that leaves the axis is
refused here always; Core ML leaves open what happens without validate_indices.
Source: coremltools, mil/ops/defs/iOS15/scatter_gather.py, iOS16 (batch_dims, other index types) and iOS17.
"""

from collections.abc import Callable

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import (
    fits,
    positive_axis,
    replaced,
    require_choice,
    require_integer,
    require_shape,
    same_dtype,
)
from torchane.mil.types import TensorType

_MODES: dict[str, Callable[[np.ndarray, tuple, np.ndarray], None]] = {
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": lambda data, at, updates: np.multiply.at(data, at, 1 / updates),
    "max": np.maximum.at,
    "min": np.minimum.at,
    "update": lambda data, at, updates: data.__setitem__(at, updates),
}


def _inside(kind: str, indices: np.ndarray, size: int, validate: bool) -> np.ndarray:
    """Indices counted from the front. Raises CompileError for one that leaves the axis, or is negative."""
    indices = indices.astype(np.int64)
    outside = indices[(indices < (0 if validate else -size)) | (indices >= size)]
    if outside.size:
        raise CompileError(f"{kind}: the index {outside[0]} leaves an axis of {size} entries.")
    return np.where(indices < 0, indices + size, indices)


gather = OpKind("gather", operands=("x", "indices"))


@gather.infers
def _(
    x: TensorType, indices: TensorType, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> TensorType:
    """The axis replaced by the axes of indices. The first batch_dims axes of both go in step."""
    require_integer("gather", indices=indices)
    axis = positive_axis("gather", axis, x.rank)
    if not 0 <= batch_dims <= min(axis, indices.rank) or not fits(x.shape[:batch_dims], indices.shape[:batch_dims]):
        raise CompileError(
            f"gather: batch_dims {batch_dims} with axis {axis}, for x {x} and indices {indices}; "
            "that many axes lead both, with equal sizes, and come before the axis."
        )
    return TensorType(x.dtype, replaced(x.shape, axis, *indices.shape[batch_dims:]))


@gather.evaluates
def _(
    x: np.ndarray, indices: np.ndarray, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> np.ndarray:
    axis %= x.ndim
    indices = _inside("gather", indices, x.shape[axis], validate_indices)
    result = np.empty((*x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :]), x.dtype)
    for batch in np.ndindex(*x.shape[:batch_dims]):
        result[batch] = np.take(x[batch], indices[batch], axis=axis - batch_dims)
    return result


gather_along_axis = OpKind("gather_along_axis", operands=("x", "indices"))


@gather_along_axis.infers
def _(x: TensorType, indices: TensorType, axis: int = 0, validate_indices: bool = False) -> TensorType:
    """result[i, j, k] = x[i, indices[i, j, k], k], for axis 1."""
    require_integer("gather_along_axis", indices=indices)
    axis = positive_axis("gather_along_axis", axis, x.rank)
    if indices.rank != x.rank:
        raise CompileError(f"gather_along_axis: x {x} and indices {indices} must have as many axes as each other.")
    require_shape("gather_along_axis", replaced(x.shape, axis, indices.shape[axis]), indices=indices)
    return TensorType(x.dtype, indices.shape)


@gather_along_axis.evaluates
def _(x: np.ndarray, indices: np.ndarray, axis: int = 0, validate_indices: bool = False) -> np.ndarray:
    return np.take_along_axis(x, _inside("gather_along_axis", indices, x.shape[axis], validate_indices), axis)


gather_nd = OpKind("gather_nd", operands=("x", "indices"))


def _depth(kind: str, x: TensorType, indices: TensorType, batch_dims: int = 0) -> int:
    """How many axes of x one row of indices names."""
    depth = indices.shape[-1] if indices.rank else None
    if depth is None or not 0 <= batch_dims < indices.rank or depth + batch_dims > x.rank:
        raise CompileError(
            f"{kind}: the last axis of indices {indices} names axes of {x}, after {batch_dims} batch axes; "
            "its size must be known and no more than the axes that are left."
        )
    return depth


@gather_nd.infers
def _(x: TensorType, indices: TensorType, batch_dims: int = 0, validate_indices: bool = False) -> TensorType:
    """Each row of indices (..., K) names an entry of the first K axes of x, after the batch axes."""
    require_integer("gather_nd", indices=indices)
    depth = _depth("gather_nd", x, indices, batch_dims)
    if not fits(x.shape[:batch_dims], indices.shape[:batch_dims]):
        raise CompileError(f"gather_nd: the first {batch_dims} axes of x {x} and indices {indices} differ.")
    return TensorType(x.dtype, (*indices.shape[:-1], *x.shape[batch_dims + depth :]))


@gather_nd.evaluates
def _(x: np.ndarray, indices: np.ndarray, batch_dims: int = 0, validate_indices: bool = False) -> np.ndarray:
    depth = indices.shape[-1]
    result = np.empty((*indices.shape[:-1], *x.shape[batch_dims + depth :]), x.dtype)
    for batch in np.ndindex(*x.shape[:batch_dims]):
        result[batch] = x[batch][_rows("gather_nd", indices[batch], x.shape[batch_dims:], validate_indices)]
    return result


def _rows(kind: str, indices: np.ndarray, shape: tuple[int, ...], validate: bool) -> tuple[np.ndarray, ...]:
    """(..., K) -> K arrays, to index with."""
    return tuple(_inside(kind, indices[..., axis], shape[axis], validate) for axis in range(indices.shape[-1]))


scatter = OpKind("scatter", operands=("data", "indices", "updates"))


def _require_scatter(kind: str, data: TensorType, indices: TensorType, updates: TensorType, mode: str) -> None:
    require_integer(kind, indices=indices)
    same_dtype(kind, data=data, updates=updates)
    require_choice(kind, "mode", mode, tuple(_MODES))


@scatter.infers
def _(
    data: TensorType,
    indices: TensorType,
    updates: TensorType,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> TensorType:
    """data with updates put at indices along the axis, or added, multiplied, ... to what is there, by mode."""
    _require_scatter("scatter", data, indices, updates, mode)
    axis = positive_axis("scatter", axis, data.rank)
    require_shape("scatter", replaced(data.shape, axis, *indices.shape), updates=updates)
    return data


@scatter.evaluates
def _(
    data: np.ndarray,
    indices: np.ndarray,
    updates: np.ndarray,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> np.ndarray:
    axis %= data.ndim
    result = data.copy()
    _MODES[mode](
        result, (slice(None),) * axis + (_inside("scatter", indices, data.shape[axis], validate_indices),), updates
    )
    return result


scatter_along_axis = OpKind("scatter_along_axis", operands=("data", "indices", "updates"))


@scatter_along_axis.infers
def _(
    data: TensorType,
    indices: TensorType,
    updates: TensorType,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> TensorType:
    """result[i, indices[i, j, k], k] gets updates[i, j, k], for axis 1."""
    _require_scatter("scatter_along_axis", data, indices, updates, mode)
    axis = positive_axis("scatter_along_axis", axis, data.rank)
    if indices.rank != data.rank:
        raise CompileError(f"scatter_along_axis: data {data} and indices {indices} must have as many axes.")
    require_shape("scatter_along_axis", replaced(data.shape, axis, indices.shape[axis]), indices=indices)
    require_shape("scatter_along_axis", indices.shape, updates=updates)
    return data


@scatter_along_axis.evaluates
def _(
    data: np.ndarray,
    indices: np.ndarray,
    updates: np.ndarray,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> np.ndarray:
    at = list(np.indices(indices.shape, sparse=True))
    at[axis] = _inside("scatter_along_axis", indices, data.shape[axis], validate_indices)
    result = data.copy()
    _MODES[mode](result, tuple(at), updates)
    return result


scatter_nd = OpKind("scatter_nd", operands=("data", "indices", "updates"))


@scatter_nd.infers
def _(
    data: TensorType, indices: TensorType, updates: TensorType, mode: str = "add", validate_indices: bool = False
) -> TensorType:
    """Each row of indices (..., K) names the entry of the first K axes of data that gets its update."""
    _require_scatter("scatter_nd", data, indices, updates, mode)
    depth = _depth("scatter_nd", data, indices)
    require_shape("scatter_nd", (*indices.shape[:-1], *data.shape[depth:]), updates=updates)
    return data


@scatter_nd.evaluates
def _(
    data: np.ndarray, indices: np.ndarray, updates: np.ndarray, mode: str = "add", validate_indices: bool = False
) -> np.ndarray:
    result = data.copy()
    _MODES[mode](result, _rows("scatter_nd", indices, data.shape, validate_indices), updates)
    return result
