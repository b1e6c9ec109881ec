"""Sums, means, extremes and variances over axes. A sum is taken wide and rounded once, by every device."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.fx import Node

from torchane.capture.rules import common
from torchane.capture.rules.common import scaled
from torchane.capture.rules.registry import FLOATS, Value, lowers, values
from torchane.mil.build import Builder

aten = torch.ops.aten

Dims = int | Sequence[int] | None


def _float_result(node: Node) -> str | None:
    (dtype,) = values(node, "dtype")
    return None if dtype is None or dtype in FLOATS else f"its result is {dtype}"


def _reduced(b: Builder, kind: str, x: Value, dim: Dims, keepdim: bool) -> Value:
    axes = common.axes_of(dim, len(x.shape))
    return getattr(b, kind)(x=x, axes=axes, keep_dims=keepdim) if axes else x


@lowers(aten.sum.default, aten.sum.dim_IntList, when=_float_result)
def sum_(b: Builder, x: Value, dim: Dims = None, keepdim: bool = False, *, dtype: object = None) -> Value:
    return _reduced(b, "reduce_sum", x, dim, keepdim)


@lowers(aten.mean.default, aten.mean.dim, when=_float_result)
def mean(b: Builder, x: Value, dim: Dims = None, keepdim: bool = False, *, dtype: object = None) -> Value:
    return _reduced(b, "reduce_mean", x, dim, keepdim)


@lowers(aten.amax.default)
def amax(b: Builder, x: Value, dim: Dims = None, keepdim: bool = False) -> Value:
    return _reduced(b, "reduce_max", x, dim, keepdim)


@lowers(aten.amin.default)
def amin(b: Builder, x: Value, dim: Dims = None, keepdim: bool = False) -> Value:
    return _reduced(b, "reduce_min", x, dim, keepdim)


@lowers(aten.max.default)
def max_(b: Builder, x: Value) -> Value:
    return _reduced(b, "reduce_max", x, None, False)


@lowers(aten.min.default)
def min_(b: Builder, x: Value) -> Value:
    return _reduced(b, "reduce_min", x, None, False)


@lowers(aten.max.dim, ignored_outputs=(1,))
def max_dim(b: Builder, x: Value, dim: int, keepdim: bool = False) -> tuple[Value | None, ...]:
    return _reduced(b, "reduce_max", x, dim, keepdim), None


@lowers(aten.min.dim, ignored_outputs=(1,))
def min_dim(b: Builder, x: Value, dim: int, keepdim: bool = False) -> tuple[Value | None, ...]:
    return _reduced(b, "reduce_min", x, dim, keepdim), None


def _more_than_the_correction(node: Node) -> str | None:
    x, dim, correction = values(node, "self", "dim", "correction")
    count = _count(x.meta["val"].shape, dim)
    correction = 1 if correction is None else correction
    return None if count > correction else f"the variance of {count} numbers with correction {correction} is not finite"


def _count(shape: Sequence[int], dim: Dims) -> int:
    return math.prod(shape[axis] for axis in common.axes_of(dim, len(shape)))


def moments(b: Builder, x: Value, axes: Sequence[int]) -> tuple[Value, Value, Value]:
    """(mean, x - mean, mean of its square), reduced axes kept: the difference first, then its square,
    so that a large mean does not swallow a small spread."""
    average = common.mean(b, x, axes)
    centred = b.sub(x=x, y=average)
    return average, centred, common.mean(b, b.mul(x=centred, y=centred), axes)


@lowers(aten.var_mean.correction, when=_more_than_the_correction)
def var_mean(
    b: Builder, x: Value, dim: Dims = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Value, Value]:
    """(variance, mean)."""
    shape = common.sizes(x)
    axes = common.axes_of(dim, len(shape))
    count = _count(shape, dim)
    average, _, variance = moments(b, x, axes)
    variance = scaled(b, variance, count / (count - (1 if correction is None else correction)))
    kept = [size for axis, size in enumerate(shape) if axis not in axes]
    if keepdim:
        kept = [1 if axis in axes else size for axis, size in enumerate(shape)]
    return common.reshaped(b, variance, kept), common.reshaped(b, average, kept)


@lowers(aten.var.correction, when=_more_than_the_correction)
def var(b: Builder, x: Value, dim: Dims = None, *, correction: float | None = None, keepdim: bool = False) -> Value:
    return var_mean(b, x, dim, correction=correction, keepdim=keepdim)[0]


@lowers(aten.std.correction, when=_more_than_the_correction)
def std(b: Builder, x: Value, dim: Dims = None, *, correction: float | None = None, keepdim: bool = False) -> Value:
    return b.sqrt(x=var(b, x, dim, correction=correction, keepdim=keepdim))


def _known_order(node: Node) -> str | None:
    order, dtype = values(node, "ord", "dtype")
    if order not in (1, 2, math.inf, -math.inf):
        return f"the norm of order {order} has no form in programs"
    return None if dtype is None or dtype in FLOATS else f"its result is {dtype}"


@lowers(aten.linalg_vector_norm.default, when=_known_order)
def vector_norm(
    b: Builder, x: Value, ord: float = 2, dim: Dims = None, keepdim: bool = False, *, dtype: object = None
) -> Value:
    """The root of the sum of squares (which leaves fp16 from 256 on), or the sum or an extreme of |x|."""
    if ord == 2:
        return b.sqrt(x=_reduced(b, "reduce_sum", b.mul(x=x, y=x), dim, keepdim))
    kind = {1: "reduce_sum", math.inf: "reduce_max", -math.inf: "reduce_min"}[ord]
    return _reduced(b, kind, b.abs(x=x), dim, keepdim)


def _sum_fits(node: Node) -> str | None:
    x, dim = values(node, "self", "dim")
    return common.why_sum_of_exponentials_overflows(x.meta["val"].shape, dim)


@lowers(aten.logsumexp.default, needs=("log",), when=_sum_fits)
def logsumexp(b: Builder, x: Value, dim: Dims, keepdim: bool = False) -> Value:
    """max + log(sum(exp(x - max))): exp never leaves fp16."""
    axes = common.axes_of(dim, len(x.shape))
    if not axes:
        return x
    top = b.reduce_max(x=x, axes=axes, keep_dims=True)
    total = b.reduce_sum(x=b.exp(x=b.sub(x=x, y=top)), axes=axes, keep_dims=True)
    result = b.add(x=b.log(x=total, epsilon=0.0), y=top)
    kept = [1 if axis in axes else size for axis, size in enumerate(common.sizes(x))]
    return result if keepdim else common.reshaped(b, result, [s for a, s in enumerate(kept) if a not in axes])


@lowers(aten.cumsum.default, when=_float_result)
def cumsum(b: Builder, x: Value, dim: int, *, dtype: object = None) -> Value:
    """A product with a triangle of ones: the sums are wide, and rounded once."""
    shape = common.sizes(x)
    if not shape:
        return x
    axis = common.axis_of(dim, len(shape))
    triangle = common.constant(np.triu(np.ones((shape[axis], shape[axis]))), common.dtype_of(x))
    last = len(shape) - 1
    rows = common.reshaped(b, common.swapped(b, x, axis, last), (-1, shape[axis]))
    turned = [shape[i] for i in range(len(shape))]
    turned[axis], turned[last] = turned[last], turned[axis]
    return common.swapped(b, common.reshaped(b, b.matmul(x=rows, y=triangle), turned), axis, last)
