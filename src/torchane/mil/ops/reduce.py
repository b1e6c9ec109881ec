"""Reductions over axes. `axes` absent means all; without `keep_dims` the axes disappear.

Source: coremltools, mil/ops/defs/iOS15/reduction.py and iOS17/reduction.py (output_dtype).
"""

from collections.abc import Callable

import numpy as np

from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import positive_axes, positive_axis, replaced, require_choice, require_numbers
from torchane.mil.types import DTYPES, TensorType


def _reduction(name: str, function: Callable[..., np.ndarray]) -> OpKind:
    kind = OpKind(name)

    @kind.infers
    def _(x: TensorType, axes: tuple[int, ...] | None = None, keep_dims: bool = False) -> TensorType:
        require_numbers(name, x=x)
        gone = positive_axes(name, axes, x.rank)
        if keep_dims:
            return TensorType(x.dtype, tuple(1 if axis in gone else size for axis, size in enumerate(x.shape)))
        return TensorType(x.dtype, tuple(size for axis, size in enumerate(x.shape) if axis not in gone))

    @kind.evaluates
    def _(x: np.ndarray, axes: tuple[int, ...] | None = None, keep_dims: bool = False) -> np.ndarray:
        return function(x, axis=positive_axes(name, axes, x.ndim), keepdims=keep_dims)

    return kind


def _log_sum_exp(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
    """The largest entry is taken out first, unless it is infinite."""
    top = x.max(axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    total = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    return total if keepdims else total.squeeze(axis)


reduce_sum = _reduction("reduce_sum", np.sum)
reduce_mean = _reduction("reduce_mean", np.mean)
reduce_max = _reduction("reduce_max", np.max)
reduce_min = _reduction("reduce_min", np.min)
reduce_prod = _reduction("reduce_prod", np.prod)
reduce_l1_norm = _reduction("reduce_l1_norm", lambda x, **over: np.sum(np.abs(x), **over))
reduce_l2_norm = _reduction("reduce_l2_norm", lambda x, **over: np.sqrt(np.sum(np.square(x), **over)))
reduce_sum_square = _reduction("reduce_sum_square", lambda x, **over: np.sum(np.square(x), **over))
reduce_log_sum = _reduction("reduce_log_sum", lambda x, **over: np.log(np.sum(x, **over)))
reduce_log_sum_exp = _reduction("reduce_log_sum_exp", _log_sum_exp)


def _position(name: str, function: Callable[..., np.ndarray]) -> OpKind:
    """Where along one axis; the first of equals."""
    kind = OpKind(name)

    @kind.infers
    def _(x: TensorType, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> TensorType:
        require_numbers(name, x=x)
        require_choice(name, "output_dtype", output_dtype.lower(), ("int32", "uint16"))
        gone = positive_axis(name, axis, x.rank)
        return TensorType(DTYPES[output_dtype.lower()], replaced(x.shape, gone, *((1,) if keep_dims else ())))

    @kind.evaluates
    def _(x: np.ndarray, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> np.ndarray:
        return function(x, axis=axis, keepdims=keep_dims)

    return kind


reduce_argmax = _position("reduce_argmax", np.argmax)
reduce_argmin = _position("reduce_argmin", np.argmin)
