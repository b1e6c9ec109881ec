"""Normalisations over the last axes, over groups of channels, over the batch, and their gradients.

All share one form. With r the reciprocal root of the variance (for RMSNorm: of the mean square) and
xhat = (x - mean) * r, the gradient is  dx = r * (g - mean(g) - xhat * mean(g * xhat)):  every factor but
r is near 1, and r enters once. The textbook r**3 (r up to 1e3) would leave fp16.
"""

from collections.abc import Sequence

import torch

from torchane.capture.rules import common
from torchane.capture.rules.decompose import batch_moments
from torchane.capture.rules.reductions import moments
from torchane.capture.rules.registry import Value, lowers
from torchane.mil.build import Builder
from torchane.mil.ir import literal
from torchane.mil.types import FP32, DType

aten = torch.ops.aten

#: F.rms_norm without eps takes the finfo(float32).eps of its input.
_RMS_NORM_EPS = 2.0**-23


def _reciprocal_root(b: Builder, variance: Value, eps: float) -> Value:
    """1 / sqrt(variance + eps). eps goes in as the op's own argument, which fp16 does not round."""
    wide = DType.FP64 if common.dtype_of(variance) == DType.FP64 else FP32
    return b.rsqrt(x=variance, epsilon=literal(eps, wide))


def _affine(b: Builder, xhat: Value, weight: Value | None, bias: Value | None) -> Value:
    if weight is not None:
        xhat = b.mul(x=xhat, y=weight)
    return xhat if bias is None else b.add(x=xhat, y=bias)


def _input_grad(b: Builder, grad: Value, xhat: Value, rstd: Value, axes: Sequence[int], centred: bool) -> Value:
    """dx of xhat * anything, given the gradient in xhat."""
    along = b.mul(x=xhat, y=common.mean(b, b.mul(x=grad, y=xhat), axes))
    if centred:
        grad = b.sub(x=grad, y=common.mean(b, grad, axes))
    return b.mul(x=rstd, y=b.sub(x=grad, y=along))


def _normalized_axes(x: Value, normalized_shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(axes that are normalised, axes before them)."""
    rank = len(x.shape)
    first = rank - len(normalized_shape)
    return tuple(range(first, rank)), tuple(range(first))


@lowers(aten.native_layer_norm.default)
def layer_norm(
    b: Builder, x: Value, normalized_shape: Sequence[int], weight: Value | None, bias: Value | None, eps: float
) -> tuple[Value, Value, Value]:
    """(y, mean, rstd), the last two with size 1 on the normalised axes."""
    axes, _ = _normalized_axes(x, normalized_shape)
    average, centred, variance = moments(b, x, axes)
    rstd = _reciprocal_root(b, variance, eps)
    return _affine(b, b.mul(x=centred, y=rstd), weight, bias), average, rstd


@lowers(aten.native_layer_norm_backward.default)
def layer_norm_backward(
    b: Builder,
    grad: Value,
    x: Value,
    normalized_shape: Sequence[int],
    mean: Value,
    rstd: Value,
    weight: Value | None,
    bias: Value | None,
    output_mask: Sequence[bool],
) -> tuple[Value | None, ...]:
    """(dx, dweight, dbias), None where output_mask says so."""
    axes, leading = _normalized_axes(x, normalized_shape)
    xhat = b.mul(x=b.sub(x=x, y=mean), y=rstd)
    dx = dweight = dbias = None
    if output_mask[0]:
        inner = grad if weight is None else b.mul(x=grad, y=weight)
        dx = _input_grad(b, inner, xhat, rstd, axes, centred=True)
    if output_mask[1] and weight is not None:
        dweight = common.reshaped(b, common.summed(b, b.mul(x=grad, y=xhat), leading), normalized_shape)
    if output_mask[2] and bias is not None:
        dbias = common.reshaped(b, common.summed(b, grad, leading), normalized_shape)
    return dx, dweight, dbias


@lowers(aten._fused_rms_norm.default)
def rms_norm(
    b: Builder, x: Value, normalized_shape: Sequence[int], weight: Value | None, eps: float | None
) -> tuple[Value, Value]:
    """(y, rstd)."""
    axes, _ = _normalized_axes(x, normalized_shape)
    rstd = _reciprocal_root(b, common.mean(b, b.mul(x=x, y=x), axes), _RMS_NORM_EPS if eps is None else eps)
    return _affine(b, b.mul(x=x, y=rstd), weight, None), rstd


@lowers(aten._fused_rms_norm_backward.default)
def rms_norm_backward(
    b: Builder,
    grad: Value,
    x: Value,
    normalized_shape: Sequence[int],
    rstd: Value,
    weight: Value | None,
    output_mask: Sequence[bool],
) -> tuple[Value | None, ...]:
    """(dx, dweight)."""
    axes, leading = _normalized_axes(x, normalized_shape)
    xhat = b.mul(x=x, y=rstd)
    dx = dweight = None
    if output_mask[0]:
        inner = grad if weight is None else b.mul(x=grad, y=weight)
        dx = _input_grad(b, inner, xhat, rstd, axes, centred=False)
    if output_mask[1] and weight is not None:
        dweight = common.reshaped(b, common.summed(b, b.mul(x=grad, y=xhat), leading), normalized_shape)
    return dx, dweight


def _over_channels(b: Builder, x: Value | None, rank: int) -> Value | None:
    """A vector [C] as [1, C, 1, ...], to meet [N, C, ...]."""
    return None if x is None else common.reshaped(b, x, (1, -1) + (1,) * (rank - 2))


@lowers(batch_moments)
def moments_of_a_batch(b: Builder, x: Value, eps: float) -> tuple[Value, Value, Value]:
    """(mean, standard deviation, 1 / sqrt(variance + eps)) of each channel."""
    axes = tuple(axis for axis in range(len(x.shape)) if axis != 1)
    average, _, variance = moments(b, x, axes)
    results = average, b.sqrt(x=variance), _reciprocal_root(b, variance, eps)
    mean, deviation, rstd = (common.reshaped(b, result, (-1,)) for result in results)
    return mean, deviation, rstd


@lowers(aten.native_batch_norm_backward.default)
def batch_norm_backward(
    b: Builder, grad: Value, x: Value, weight: Value | None, running_mean: Value | None, running_var: Value | None,
    save_mean: Value | None, save_invstd: Value | None, train: bool, eps: float, output_mask: Sequence[bool],
) -> tuple[Value | None, ...]:  # fmt: skip
    """(dx, dweight, dbias); out of training the running statistics are constants and dx is grad * weight * r."""
    rank = len(x.shape)
    axes = (0, *range(2, rank))
    mean, rstd = save_mean, save_invstd
    if not train:
        assert running_mean is not None and running_var is not None
        mean, rstd = running_mean, _reciprocal_root(b, running_var, eps)
    rstd = _over_channels(b, rstd, rank)
    xhat = b.mul(x=b.sub(x=x, y=_over_channels(b, mean, rank)), y=rstd)
    dx = dweight = dbias = None
    if output_mask[0]:
        inner = _affine(b, grad, _over_channels(b, weight, rank), None)
        dx = _input_grad(b, inner, xhat, rstd, axes, centred=True) if train else b.mul(x=inner, y=rstd)
    if output_mask[1]:
        dweight = common.summed(b, b.mul(x=grad, y=xhat), axes, keep_dims=False)
    if output_mask[2]:
        dbias = common.summed(b, grad, axes, keep_dims=False)
    return dx, dweight, dbias


@lowers(aten.native_group_norm.default)
def group_norm(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    n: int,
    c: int,
    positions: int,
    group: int,
    eps: float,
) -> tuple[Value, Value, Value]:
    """(y, mean, rstd), the last two [N, group]."""
    average, centred, variance = moments(b, common.reshaped(b, x, (n, group, -1)), (2,))
    rstd = _reciprocal_root(b, variance, eps)
    xhat = common.reshaped(b, b.mul(x=centred, y=rstd), (n, c, positions))
    y = _affine(b, xhat, _over_channels(b, weight, 3), _over_channels(b, bias, 3))
    shape = common.sizes(x)
    return common.reshaped(b, y, shape), common.reshaped(b, average, (n, group)), common.reshaped(b, rstd, (n, group))


@lowers(aten.native_group_norm_backward.default)
def group_norm_backward(
    b: Builder, grad: Value, x: Value, mean: Value, rstd: Value, weight: Value | None, n: int, c: int,
    positions: int, group: int, output_mask: Sequence[bool],
) -> tuple[Value | None, ...]:  # fmt: skip
    """(dx, dweight, dbias)."""
    shape, grouped, rstd = common.sizes(x), (n, group, -1), common.reshaped(b, rstd, (n, group, 1))
    centred = b.sub(x=common.reshaped(b, x, grouped), y=common.reshaped(b, mean, (n, group, 1)))
    xhat = b.mul(x=centred, y=rstd)
    grad = common.reshaped(b, grad, (n, c, positions))
    dx = dweight = dbias = None
    if output_mask[0]:
        inner = common.reshaped(b, _affine(b, grad, _over_channels(b, weight, 3), None), grouped)
        dx = common.reshaped(b, _input_grad(b, inner, xhat, rstd, (2,), centred=True), shape)
    if output_mask[1]:
        each = b.mul(x=grad, y=common.reshaped(b, xhat, (n, c, positions)))
        dweight = common.summed(b, each, (0, 2), keep_dims=False)
    if output_mask[2]:
        dbias = common.summed(b, grad, (0, 2), keep_dims=False)
    return dx, dweight, dbias
