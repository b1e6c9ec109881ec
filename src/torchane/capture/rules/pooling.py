"""Pooling: the largest of a window, and the mean of a window, with their gradients.

A mean over windows is linear and separable: y = A_h x A_w^T with two constant matrices that hold the
windows and their divisors, and its gradient A_h^T dy A_w. So is resizing an image. The largest entry is a
chain of maxima over the taps; its gradient goes to the first tap that equals it, as in torch.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from torchane.abi.numbers import FP16_MAX
from torchane.capture.rules import common
from torchane.capture.rules.common import constant, number, one_minus, positive, reshaped, sizes
from torchane.capture.rules.convolution import Pair, Window, tap_values, window_of
from torchane.capture.rules.decompose import max_pool2d_backward
from torchane.capture.rules.registry import Value, lowers
from torchane.capture.rules.slices import padded_all, put_back
from torchane.mil.build import Builder

aten = torch.ops.aten

#: Below every number of fp16 that is not itself the lowest: what padding holds for a maximum.
_LOWEST = -FP16_MAX


def _with_batch(b: Builder, x: Value) -> Value:
    """[C, H, W] as [1, C, H, W]."""
    return reshaped(b, x, (1, *sizes(x))) if len(x.shape) == 3 else x


def _pool_window(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int] | int, dilation: Sequence[int] | int = 1
) -> Window:
    kernel = list(kernel) * (2 // len(kernel))
    padding, dilation = ([item] if isinstance(item, int) else list(item) for item in (padding, dilation))
    return window_of(kernel, list(stride) or kernel, padding, dilation)


def _pooled_size(window: Window, size: Sequence[int], ceil_mode: bool) -> Pair:
    """torch's: with ceil_mode a last window that would start in the padding at the end is dropped."""
    if not ceil_mode:
        return window.output_size(tuple(size))  # type: ignore[arg-type]
    result = []
    for n, p, reach, s in zip(size, window.padding, window.reach, window.stride):
        count = math.ceil((n + 2 * p - reach - 1) / s) + 1
        result.append(count - 1 if (count - 1) * s >= n + p else count)
    return tuple(result)  # type: ignore[return-value]


@lowers(aten.max_pool2d_with_indices.default, ignored_outputs=(1,))
def max_pool2d(
    b: Builder, x: Value, kernel_size: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] | int = 0,
    dilation: Sequence[int] | int = 1, ceil_mode: bool = False,
) -> tuple[Value, None]:  # fmt: skip
    shape = sizes(x)
    x = _with_batch(b, x)
    window = _pool_window(kernel_size, stride, padding, dilation)
    size = _pooled_size(window, shape[-2:], ceil_mode)
    return reshaped(
        b, _largest(b, tap_values(b, x, window, size, taps=window.taps, fill=_LOWEST)), shape[:-2] + size
    ), None


def _largest(b: Builder, taps: Sequence[Value]) -> Value:
    result, *rest = taps
    for tap in rest:
        result = b.maximum(x=result, y=tap)
    return result


@lowers(max_pool2d_backward)
def max_pool2d_gradient(
    b: Builder, grad: Value, x: Value, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], ceil_mode: bool,
) -> Value:  # fmt: skip
    """Each window's gradient to its first largest entry; entries of several windows add up."""
    shape = sizes(x)
    x, grad = _with_batch(b, x), _with_batch(b, grad)
    window = _pool_window(kernel_size, stride, padding, dilation)
    size = _pooled_size(window, shape[-2:], ceil_mode)
    taps = tap_values(b, x, window, size, taps=window.taps, fill=_LOWEST)
    largest, total, free = _largest(b, taps), None, None
    is_padded = any(window.padding) or ceil_mode
    for (i, j), tap in zip(window.taps, taps):
        below = b.sub(x=largest, y=tap)
        if is_padded:  # 16 and more above padding is beyond fp16
            below = b.minimum(x=below, y=number(-_LOWEST, common.dtype_of(x)))
        chosen = one_minus(b, positive(b, below))
        if free is not None:
            chosen = b.mul(x=chosen, y=free)
        free = one_minus(b, chosen) if free is None else b.sub(x=free, y=chosen)
        share = b.mul(x=grad, y=chosen)
        for axis, offset in ((2, i * window.dilation[0]), (3, j * window.dilation[1])):
            step, count = window.stride[axis - 2], size[axis - 2]
            stuffed = (count - 1) * step + 1
            share = put_back(b, share, axis, stuffed, range(0, stuffed, step))
            before = offset - window.padding[axis - 2]
            share = padded_all(b, share, {axis: (before, shape[axis - 4] - stuffed - before)})
        total = share if total is None else b.add(x=total, y=share)
    assert total is not None
    return reshaped(b, total, shape)


def _separable(b: Builder, x: Value, high: np.ndarray, wide: np.ndarray) -> Value:
    """high @ x @ wide^T over the last two axes."""
    dtype = common.dtype_of(x)
    y = b.matmul(x=x, y=constant(wide, dtype), transpose_x=False, transpose_y=True)
    return b.matmul(x=constant(high, dtype), y=y, transpose_x=False, transpose_y=False)


def _mean_windows(
    window: Window, size: Sequence[int], ceil_mode: bool, count_include_pad: bool, divisor: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The matrices (OH, H) and (OW, W) whose rows are windows with their weights."""
    result = []
    for axis, count in enumerate(_pooled_size(window, size, ceil_mode)):
        matrix = np.zeros((count, size[axis]))
        for row in range(count):
            begin = row * window.stride[axis] - window.padding[axis]
            end = min(begin + window.kernel[axis], size[axis] + window.padding[axis])
            inside = slice(max(begin, 0), min(end, size[axis]))
            total = end - begin if count_include_pad else inside.stop - inside.start
            matrix[row, inside] = 1 / total if divisor is None else 1.0
        result.append(matrix)
    return result[0] / (divisor or 1), result[1]


@lowers(aten.avg_pool2d.default)
def avg_pool2d(
    b: Builder, x: Value, kernel_size: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] | int = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Value:  # fmt: skip
    window = _pool_window(kernel_size, stride, padding)
    return _separable(b, x, *_mean_windows(window, sizes(x)[-2:], ceil_mode, count_include_pad, divisor_override))


@lowers(aten.avg_pool2d_backward.default)
def avg_pool2d_backward(
    b: Builder, grad: Value, x: Value, kernel_size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int] | int, ceil_mode: bool, count_include_pad: bool, divisor_override: int | None,
) -> Value:  # fmt: skip
    window = _pool_window(kernel_size, stride, padding)
    high, wide = _mean_windows(window, sizes(x)[-2:], ceil_mode, count_include_pad, divisor_override)
    return _separable(b, grad, high.T, wide.T)


def _bins(size: int, count: int) -> np.ndarray:
    """(count, size): row i is the mean of the entries from floor(i size / count) to ceil((i + 1) size / count)."""
    matrix = np.zeros((count, size))
    for row in range(count):
        inside = slice(row * size // count, -(-(row + 1) * size // count))
        matrix[row, inside] = 1 / (inside.stop - inside.start)
    return matrix


@lowers(aten._adaptive_avg_pool2d.default)
def adaptive_avg_pool2d(b: Builder, x: Value, output_size: Sequence[int]) -> Value:
    high, wide = (_bins(size, count) for size, count in zip(sizes(x)[-2:], output_size))
    return _separable(b, x, high, wide)


@lowers(aten._adaptive_avg_pool2d_backward.default)
def adaptive_avg_pool2d_backward(b: Builder, grad: Value, x: Value) -> Value:
    high, wide = (_bins(size, count) for size, count in zip(sizes(x)[-2:], sizes(grad)[-2:]))
    return _separable(b, grad, high.T, wide.T)


def _nearest(size: int, count: int, scale: float | None) -> np.ndarray:
    """(count, size): row i picks entry floor(i / scale)."""
    ratio = 1 / scale if scale else size / count
    matrix = np.zeros((count, size))
    matrix[np.arange(count), np.minimum((np.arange(count) * np.float32(ratio)).astype(int), size - 1)] = 1
    return matrix


def _bilinear(size: int, count: int, align_corners: bool, scale: float | None) -> np.ndarray:
    """(count, size): row i mixes the two entries beside its place in the input."""
    matrix = np.zeros((count, size))
    rows = np.arange(count)
    if align_corners:
        place = rows * ((size - 1) / (count - 1) if count > 1 else 0.0)
    else:
        place = np.maximum((rows + 0.5) * (1 / scale if scale else size / count) - 0.5, 0)
    low = np.minimum(place.astype(int), size - 1)
    np.add.at(matrix, (rows, low), 1 - (place - low))
    np.add.at(matrix, (rows, np.minimum(low + 1, size - 1)), place - low)
    return matrix


@lowers(aten.upsample_nearest2d.default)
def upsample_nearest2d(
    b: Builder, x: Value, output_size: Sequence[int], scales_h: float | None = None, scales_w: float | None = None
) -> Value:
    return _separable(b, x, *map(_nearest, sizes(x)[-2:], output_size, (scales_h, scales_w)))


@lowers(aten.upsample_nearest2d_backward.default)
def upsample_nearest2d_backward(
    b: Builder, grad: Value, output_size: Sequence[int], input_size: Sequence[int], scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:  # fmt: skip
    high, wide = map(_nearest, input_size[-2:], output_size, (scales_h, scales_w))
    return _separable(b, grad, high.T, wide.T)


@lowers(aten.upsample_bilinear2d.default)
def upsample_bilinear2d(
    b: Builder, x: Value, output_size: Sequence[int], align_corners: bool, scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:  # fmt: skip
    corners = (align_corners, align_corners)
    return _separable(b, x, *map(_bilinear, sizes(x)[-2:], output_size, corners, (scales_h, scales_w)))


@lowers(aten.upsample_bilinear2d_backward.default)
def upsample_bilinear2d_backward(
    b: Builder, grad: Value, output_size: Sequence[int], input_size: Sequence[int], align_corners: bool,
    scales_h: float | None = None, scales_w: float | None = None,
) -> Value:  # fmt: skip
    corners = (align_corners, align_corners)
    high, wide = map(_bilinear, input_size[-2:], output_size, corners, (scales_h, scales_w))
    return _separable(b, grad, high.T, wide.T)
