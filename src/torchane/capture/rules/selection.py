"""Masks: where, masked_fill, comparisons, and, or, not.

A mask is 0.0 or 1.0. `where(mask, scores, -inf)` gives -3e4 where the mask is off (-1e4 for a finite number): finite
in fp16, and nothing after the softmax. Where every row keeps something, the penalty is simply added. Every other selection is a * mask + b * (1 - mask), exact for finite a and b.
Comparisons of program values give masks by `common.positive`; what compares only integers or positions
stays on the host.
"""

import math

import numpy as np
import torch
from torch.fx import Node

from torchane.capture.rules import common
from torchane.capture.rules.common import is_masking, number, one_minus, penalty_for, positive, scaled, uniform
from torchane.capture.rules.elementwise import Operand, operands
from torchane.capture.rules.registry import Value, lowers
from torchane.mil.build import Builder
from torchane.mil.ir import Literal, Var

aten = torch.ops.aten


@lowers(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar, masks=True)
def where(b: Builder, mask: Value, chosen: Operand, other: Operand) -> Value:
    dtype = common.dtype_of(mask)
    a, c = uniform(chosen), uniform(other)
    shape = np.broadcast_shapes(*(x.shape for x in (mask, chosen, other) if isinstance(x, Var | Literal)))
    if is_masking(c):
        result = _masked(b, mask, one_minus(b, mask), None if a == 0 else _value(chosen, dtype), penalty_for(c))
    elif is_masking(a):
        result = _masked(b, one_minus(b, mask), mask, None if c == 0 else _value(other, dtype), penalty_for(a))
    else:
        kept = None if a == 0 else mask if a == 1 else b.mul(x=mask, y=_value(chosen, dtype))
        rest = None if c == 0 else one_minus(b, mask)
        if rest is not None and c != 1:
            rest = b.mul(x=rest, y=_value(other, dtype))
        if kept is None or rest is None:
            result = rest if kept is None else kept
            result = common.filled(shape, 0, dtype) if result is None else result
        else:
            result = b.add(x=kept, y=rest)
    return common.broadcast_to(b, result, shape)


def _masked(b: Builder, kept: Value, dropped: Value, x: Value | None, amount: float) -> Value:
    """x where `kept`, else `amount`, which absorbs x only if x is taken out: that shows in rows masked throughout."""
    penalty = scaled(b, dropped, amount)
    if x is None:
        return penalty
    if not (isinstance(kept, Literal) and kept.shape and kept.value.any(axis=-1).all()):
        x = b.mul(x=x, y=kept)
    return b.add(x=penalty, y=x)


def _value(x: Operand, dtype: common.DType) -> Value:
    value = uniform(x)
    return x if value is None else number(value, dtype)  # type: ignore[return-value]


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor, masks=True)
def masked_fill(b: Builder, x: Value, mask: Value, value: Operand) -> Value:
    return where(b, mask, value, x)


def _of_finite_floats(node: Node) -> str | None:
    """Comparisons of masks, with infinity, and of a value with itself (is it NaN?) are the host's."""
    for source in node.all_input_nodes:
        if source.meta["val"].dtype == torch.bool:
            return f"its input {source.name} is a mask, and masks are compared on the host"
    x, other = node.args
    if x is other:
        return "it asks for NaN, and programs compare finite numbers"
    if not isinstance(other, Node) and not math.isfinite(other):
        return f"it compares with {other}, and programs compare finite numbers"
    return None


@lowers(aten.gt.Scalar, aten.gt.Tensor, masks=True, when=_of_finite_floats)
def gt(b: Builder, x: Operand, other: Operand) -> Var:
    x, other = operands(x, other)
    return positive(b, b.sub(x=x, y=other) if uniform(other) != 0 or other.shape else x)


@lowers(aten.lt.Scalar, aten.lt.Tensor, masks=True, when=_of_finite_floats)
def lt(b: Builder, x: Operand, other: Operand) -> Var:
    x, other = operands(x, other)
    return positive(b, b.sub(x=other, y=x))


@lowers(aten.ge.Scalar, aten.ge.Tensor, masks=True, when=_of_finite_floats)
def ge(b: Builder, x: Operand, other: Operand) -> Var:
    return one_minus(b, lt(b, x, other))


@lowers(aten.le.Scalar, aten.le.Tensor, masks=True, when=_of_finite_floats)
def le(b: Builder, x: Operand, other: Operand) -> Var:
    return one_minus(b, gt(b, x, other))


@lowers(aten.ne.Scalar, aten.ne.Tensor, masks=True, when=_of_finite_floats)
def ne(b: Builder, x: Operand, other: Operand) -> Var:
    x, other = operands(x, other)
    return positive(b, b.abs(x=b.sub(x=x, y=other)))


@lowers(aten.eq.Scalar, aten.eq.Tensor, masks=True, when=_of_finite_floats)
def eq(b: Builder, x: Operand, other: Operand) -> Var:
    return one_minus(b, ne(b, x, other))


def _of_masks(node: Node) -> str | None:
    for source in node.all_input_nodes:
        if source.meta["val"].dtype != torch.bool:
            return f"its input {source.name} is not a mask"
    return None


@lowers(aten.logical_and.default, aten.bitwise_and.Tensor, masks=True, when=_of_masks)
def logical_and(b: Builder, x: Value, other: Value) -> Var:
    return b.mul(x=x, y=other)


@lowers(aten.logical_or.default, aten.bitwise_or.Tensor, masks=True, when=_of_masks)
def logical_or(b: Builder, x: Value, other: Value) -> Var:
    return b.maximum(x=x, y=other)


@lowers(aten.logical_not.default, aten.bitwise_not.default, masks=True, when=_of_masks)
def logical_not(b: Builder, x: Value) -> Var:
    return one_minus(b, x)


def _triangle(b: Builder, x: Value, kept: np.ndarray) -> Var:
    return b.mul(x=x, y=common.constant(kept, common.dtype_of(x)))


@lowers(aten.tril.default)
def tril(b: Builder, x: Value, diagonal: int = 0) -> Var:
    return _triangle(b, x, np.tril(np.ones(common.sizes(x)[-2:]), diagonal))


@lowers(aten.triu.default)
def triu(b: Builder, x: Value, diagonal: int = 0) -> Var:
    return _triangle(b, x, np.triu(np.ones(common.sizes(x)[-2:]), diagonal))
