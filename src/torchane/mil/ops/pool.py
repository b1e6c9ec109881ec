"""Pooling over 1, 2 or 3 spatial axes: maximum, average, and the root of the sum of squares.

Source: coremltools, mil/ops/defs/iOS15/pool.py. Where a window of ceil_mode hangs over the padded data, what
lies outside counts for nothing, as in PyTorch.
"""

from collections.abc import Callable

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import require_float, require_length, require_rank
from torchane.mil.ops.windows import padding, positions, require_windows, windows
from torchane.mil.types import TensorType


def _type(
    name: str,
    ranks: tuple[int, ...],
    x: TensorType,
    kernel_sizes: tuple[int, ...],
    pad_type: str,
    strides: tuple[int, ...] | None,
    pad: tuple[int, ...] | None,
    ceil_mode: bool,
) -> TensorType:
    """x (N, C, *D) -> (N, C, *D')."""
    require_float(name, x=x)
    require_rank(name, ranks, x=x)
    rank = x.rank - 2
    pad_type = pad_type.lower()
    require_length(name, "kernel_sizes", kernel_sizes, rank, f"x {x}")
    require_windows(name, rank, strides, pad, kernel_sizes, pad_type)
    if ceil_mode and (
        rank == 3 or pad_type == "same" or (pad_type == "custom" and pad is not None and pad[::2] != pad[1::2])
    ):
        raise CompileError(
            f"{name}: ceil_mode takes 1-D or 2-D data, equal padding on both sides and not pad_type same; "
            f"x is {x}, pad_type {pad_type!r} and pad {pad}."
        )
    sizes = positions(name, x.shape[2:], kernel_sizes, strides or (1,) * rank, pad_type, pad, ceil_mode)
    return TensorType(x.dtype, (*x.shape[:2], *sizes))


def _over(
    x: np.ndarray,
    fill: float,
    outside: float,
    kernel_sizes: tuple[int, ...],
    pad_type: str,
    strides: tuple[int, ...] | None,
    pad: tuple[int, ...] | None,
    ceil_mode: bool,
) -> np.ndarray:
    """The windows (N, C, *D', *K): padding holds `fill`, what a hanging window needs beyond it `outside`."""
    ones = (1,) * (x.ndim - 2)
    steps, pad_type = strides or ones, pad_type.lower()
    around = padding(pad_type, x.shape[2:], kernel_sizes, steps, pad)
    counts = positions("pool", x.shape[2:], kernel_sizes, steps, pad_type, pad, ceil_mode)
    padded = np.pad(x, [(0, 0), (0, 0), *around], constant_values=fill)
    needed = [(count - 1) * step + k for count, step, k in zip(counts, steps, kernel_sizes)]
    beyond = [(0, max(0, need - have)) for need, have in zip(needed, padded.shape[2:])]
    return windows(np.pad(padded, [(0, 0), (0, 0), *beyond], constant_values=outside), kernel_sizes, steps, ones)


def _pool(name: str, ranks: tuple[int, ...], fill: float, function: Callable[..., np.ndarray]) -> OpKind:
    kind = OpKind(name)

    @kind.infers
    def _(
        x: TensorType,
        kernel_sizes: tuple[int, ...],
        pad_type: str,
        strides: tuple[int, ...] | None = None,
        pad: tuple[int, ...] | None = None,
        ceil_mode: bool = False,
    ) -> TensorType:
        return _type(name, ranks, x, kernel_sizes, pad_type, strides, pad, ceil_mode)

    @kind.evaluates
    def _(
        x: np.ndarray,
        kernel_sizes: tuple[int, ...],
        pad_type: str,
        strides: tuple[int, ...] | None = None,
        pad: tuple[int, ...] | None = None,
        ceil_mode: bool = False,
    ) -> np.ndarray:
        over = tuple(range(x.ndim, 2 * x.ndim - 2))
        return function(_over(x, fill, fill, kernel_sizes, pad_type, strides, pad, ceil_mode), axis=over)

    return kind


max_pool = _pool("max_pool", (3, 4, 5), -np.inf, np.max)
l2_pool = _pool("l2_pool", (3, 4), 0, lambda x, axis: np.sqrt(np.sum(np.square(x), axis=axis)))

avg_pool = OpKind("avg_pool")


@avg_pool.infers
def _(
    x: TensorType,
    kernel_sizes: tuple[int, ...],
    pad_type: str,
    strides: tuple[int, ...] | None = None,
    pad: tuple[int, ...] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> TensorType:
    return _type("avg_pool", (3, 4, 5), x, kernel_sizes, pad_type, strides, pad, ceil_mode)


@avg_pool.evaluates
def _(
    x: np.ndarray,
    kernel_sizes: tuple[int, ...],
    pad_type: str,
    strides: tuple[int, ...] | None = None,
    pad: tuple[int, ...] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> np.ndarray:
    over = tuple(range(x.ndim, 2 * x.ndim - 2))
    how = (kernel_sizes, pad_type, strides, pad, ceil_mode)
    counted = _over(np.ones_like(x[:1, :1]), 0.0 if exclude_padding_from_average else 1.0, 0.0, *how)
    return _over(x, 0.0, 0.0, *how).sum(axis=over) / counted.sum(axis=over)
