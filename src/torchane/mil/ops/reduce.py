"""Reductions over axes. `axes` absent means all; without `keep_dims` the axes disappear."""

from collections.abc import Callable

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.types import TensorType


def positive_axes(kind: str, axes: tuple[int, ...] | None, rank: int) -> tuple[int, ...]:
    """The axes counted from the front, sorted; None is every axis."""
    if axes is None:
        return tuple(range(rank))
    if any(not -rank <= axis < rank for axis in axes):
        raise CompileError(f"{kind}: axes {tuple(axes)} for a tensor of rank {rank}; they run from {-rank} to {rank - 1}.")
    return tuple(sorted(axis % rank for axis in axes))


def _reduction(name: str, function: Callable[..., np.ndarray]) -> OpKind:
    kind = OpKind(name)

    @kind.infers
    def _(x: TensorType, axes: tuple[int, ...] | None = None, keep_dims: bool = False) -> TensorType:
        gone = positive_axes(name, axes, x.rank)
        if keep_dims:
            return TensorType(x.dtype, tuple(1 if axis in gone else size for axis, size in enumerate(x.shape)))
        return TensorType(x.dtype, tuple(size for axis, size in enumerate(x.shape) if axis not in gone))

    @kind.evaluates
    def _(x: np.ndarray, axes: tuple[int, ...] | None = None, keep_dims: bool = False) -> np.ndarray:
        with np.errstate(all="ignore"):
            return function(x, axis=positive_axes(name, axes, x.ndim), keepdims=keep_dims)

    return kind


reduce_sum = _reduction("reduce_sum", np.sum)
reduce_mean = _reduction("reduce_mean", np.mean)
reduce_max = _reduction("reduce_max", np.max)
reduce_min = _reduction("reduce_min", np.min)
