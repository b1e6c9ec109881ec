"""Softmax and log-softmax with their gradients.

_safe_softmax differs from softmax in rows that are -inf throughout, where torch writes zeros. Programs
mask with -1e4 instead of -inf, and such a row comes out as if nothing in it were masked; no loss reads it.
"""

import torch

from torchane.capture.rules import common
from torchane.capture.rules.registry import Value, lowers
from torchane.mil.build import Builder

aten = torch.ops.aten


@lowers(aten._softmax.default)
def softmax(b: Builder, x: Value, dim: int, half_to_float: bool) -> Value:
    if not x.shape:
        return common.filled((), 1, common.dtype_of(x))
    return b.softmax(x=x, axis=common.axis_of(dim, len(x.shape)))


@lowers(aten._safe_softmax.default)
def safe_softmax(b: Builder, x: Value, dim: int, dtype: object = None) -> Value:
    return softmax(b, x, dim, False)


@lowers(aten._softmax_backward_data.default)
def softmax_backward(b: Builder, grad: Value, output: Value, dim: int, input_dtype: object) -> Value:
    """y * (g - sum(g * y))."""
    if not output.shape:
        return common.filled((), 0, common.dtype_of(output))
    axis = common.axis_of(dim, len(output.shape))
    weighted = common.summed(b, b.mul(x=grad, y=output), (axis,))
    return b.mul(x=output, y=b.sub(x=grad, y=weighted))


@lowers(aten._log_softmax.default, needs=("log",))
def log_softmax(b: Builder, x: Value, dim: int, half_to_float: bool) -> Value:
    """(x - max) - log(sum(exp(x - max)))."""
    if not x.shape:
        return common.filled((), 0, common.dtype_of(x))
    axes = (common.axis_of(dim, len(x.shape)),)
    shifted = b.sub(x=x, y=b.reduce_max(x=x, axes=axes, keep_dims=True))
    return b.sub(x=shifted, y=b.log(x=common.summed(b, b.exp(x=shifted), axes), epsilon=0.0))


@lowers(aten._log_softmax_backward_data.default)
def log_softmax_backward(b: Builder, grad: Value, output: Value, dim: int, input_dtype: object) -> Value:
    """g - exp(y) * sum(g)."""
    if not output.shape:
        return common.filled((), 0, common.dtype_of(output))
    total = common.summed(b, grad, (common.axis_of(dim, len(output.shape)),))
    return b.sub(x=grad, y=b.mul(x=b.exp(x=output), y=total))
