"""Arithmetic, powers, elementary functions, and bounds, one element at a time.

Python numbers become scalar constants in the dtype of the tensor beside them. Division by a number is a
product with its reciprocal: one rounding of a constant (2**-12 relative) instead of a division each time.
"""

import math

import torch
from torch.fx import Node

from torchane.abi.numbers import FP16_MAX, LEFT_OUT
from torchane.capture.rules import common
from torchane.capture.rules.common import number, scaled, uniform
from torchane.capture.rules.registry import Value, lowers, values
from torchane.capture.torch_private import OpOverload
from torchane.mil.build import Builder
from torchane.mil.ir import Literal, Var

aten = torch.ops.aten

Operand = Value | int | float | bool


def operands(x: Operand, other: Operand) -> tuple[Value, Value]:
    """Both as values of one dtype; a constant that is the same everywhere shrinks to a scalar where the
    result keeps its shape."""
    dtype = common.float_dtype(x, other)
    return _operand(x, other, dtype), _operand(other, x, dtype)


def _operand(x: Operand, beside: Operand, dtype: common.DType) -> Value:
    if not isinstance(x, Var | Literal):
        return number(float(x), dtype)
    value = uniform(x)
    if value is None or not isinstance(beside, Var | Literal):
        return x
    tail = beside.shape[len(beside.shape) - len(x.shape) :] if len(x.shape) <= len(beside.shape) else None
    fits = tail is not None and all(size in (1, whole) for size, whole in zip(x.shape, tail))
    return number(value, dtype) if fits else x


def _scalar(x: Operand) -> float | None:
    """The value of a number or of a constant of rank 0, before any rounding; None for all else."""
    return uniform(x) if not isinstance(x, Var | Literal) or not x.shape else None


def _holds_the_number(node: Node) -> str | None:
    """What is added fits fp16, or is a mask's "left out", which only has to be large."""
    other, alpha = values(node, "other", "alpha")
    if isinstance(other, Node):
        return None
    amount = abs(other if node.target == aten.rsub.Scalar else other * alpha)
    return f"it adds {amount:g}, and programs hold numbers up to 65504" if FP16_MAX < amount < -LEFT_OUT else None


@lowers(aten.add.Tensor, aten.add.Scalar, masks=True, when=_holds_the_number)
def add(b: Builder, x: Operand, other: Operand, alpha: float = 1) -> Value:
    """x + alpha * other. A positive number stays positive in fp16: it may guard a division."""
    amount = _scalar(other)
    if amount == 0:
        return operands(x, other)[0]
    x, other = operands(x, other)
    if amount is not None and amount * alpha > 0:
        return b.add(x=x, y=common.epsilon(amount * alpha, common.dtype_of(x)))
    return b.add(x=x, y=scaled(b, other, alpha))


@lowers(aten.sub.Tensor, aten.sub.Scalar, masks=True, when=_holds_the_number)
def sub(b: Builder, x: Operand, other: Operand, alpha: float = 1) -> Var:
    x, other = operands(x, other)
    return b.sub(x=x, y=scaled(b, other, alpha))


@lowers(aten.rsub.Tensor, aten.rsub.Scalar, masks=True, when=_holds_the_number)
def rsub(b: Builder, x: Operand, other: Operand, alpha: float = 1) -> Var:
    """other - alpha * x."""
    x, other = operands(x, other)
    return b.sub(x=other, y=scaled(b, x, alpha))


@lowers(aten.mul.Tensor, aten.mul.Scalar, masks=True)
def mul(b: Builder, x: Operand, other: Operand) -> Value:
    for value, factor in ((x, _scalar(other)), (other, _scalar(x))):
        if factor is not None and isinstance(value, Var | Literal):
            return scaled(b, value, factor)
    x, other = operands(x, other)
    return b.mul(x=x, y=other)


@lowers(aten.div.Tensor, aten.div.Scalar)
def div(b: Builder, x: Operand, other: Operand) -> Value:
    divisor = _scalar(other)
    if divisor is not None and divisor != 0 and isinstance(x, Var | Literal):
        return scaled(b, x, 1 / divisor)
    x, other = operands(x, other)
    return b.real_div(x=x, y=other)


@lowers(aten.neg.default)
def neg(b: Builder, x: Value) -> Value:
    return scaled(b, x, -1)


@lowers(aten.reciprocal.default)
def reciprocal(b: Builder, x: Value) -> Var:
    return b.real_div(x=number(1, common.dtype_of(x)), y=x)


@lowers(aten.addcmul.default)
def addcmul(b: Builder, x: Value, first: Value, second: Value, *, value: float = 1) -> Var:
    return b.add(x=x, y=scaled(b, b.mul(x=first, y=second), value))


@lowers(aten.addcdiv.default)
def addcdiv(b: Builder, x: Value, first: Value, second: Value, *, value: float = 1) -> Var:
    return b.add(x=x, y=scaled(b, b.real_div(x=first, y=second), value))


@lowers(aten.lerp.Scalar)
def lerp_scalar(b: Builder, x: Value, end: Value, weight: float) -> Var:
    return b.add(x=x, y=scaled(b, b.sub(x=end, y=x), weight))


@lowers(aten.lerp.Tensor)
def lerp(b: Builder, x: Value, end: Value, weight: Value) -> Var:
    return b.add(x=x, y=b.mul(x=b.sub(x=end, y=x), y=weight))


#: Whole exponents up to this are products: exact for negative bases, and no table of an engine is asked.
_LARGEST_PRODUCT = 8


@lowers(aten.pow.Tensor_Scalar)
def pow_scalar(b: Builder, x: Value, exponent: float) -> Value:
    """Whole powers by squaring, halves by square roots, the rest as MIL's pow.

    x**3 of a reciprocal root (the gradient of rsqrt) leaves fp16 from x = 41 on: passes reassociate it.
    """
    whole, half = float(exponent).is_integer(), float(2 * exponent).is_integer()
    if whole and 0 <= abs(exponent) <= _LARGEST_PRODUCT:
        result = _whole_power(b, x, int(abs(exponent)))
        return reciprocal(b, result) if exponent < 0 else result
    if exponent == 0.5:
        return b.sqrt(x=x)
    if exponent == -0.5:
        return rsqrt(b, x)
    if half and 0 < exponent < _LARGEST_PRODUCT:
        return b.mul(x=_whole_power(b, x, math.floor(exponent)), y=b.sqrt(x=x))
    return b.pow(x=x, y=number(exponent, common.dtype_of(x)))


def _whole_power(b: Builder, x: Value, exponent: int) -> Value:
    if exponent == 0:
        return common.filled(common.sizes(x), 1, common.dtype_of(x))
    if exponent == 1:
        return x
    half = _whole_power(b, x, exponent // 2)
    square = b.mul(x=half, y=half)
    return b.mul(x=square, y=x) if exponent % 2 else square


def _positive_base(node: Node) -> str | None:
    (base,) = values(node, "self")
    return None if base > 0 else f"its base {base} is not positive"


@lowers(aten.pow.Scalar, when=_positive_base)
def power(b: Builder, base: float, exponent: Value) -> Value:
    """exp(exponent * log(base)): no engine is known to take an exponent of run time."""
    return b.exp(x=scaled(b, exponent, math.log(base)))


@lowers(aten.rsqrt.default)
def rsqrt(b: Builder, x: Value) -> Var:
    return b.rsqrt(x=x, epsilon=0.0)


@lowers(aten.log.default, needs=("log",))
def log(b: Builder, x: Value) -> Var:
    return b.log(x=x, epsilon=0.0)


@lowers(aten.log2.default, needs=("log",))
def log2(b: Builder, x: Value) -> Value:
    return scaled(b, log(b, x), 1 / math.log(2))


@lowers(aten.log10.default, needs=("log",))
def log10(b: Builder, x: Value) -> Value:
    return scaled(b, log(b, x), 1 / math.log(10))


@lowers(aten.log1p.default, needs=("log",))
def log1p(b: Builder, x: Value) -> Var:
    """log(u) + (x - (u - 1)) / u with u = 1 + x as it was rounded: MIL has no log1p, and below 2**-11 in fp16 u is 1."""
    one, minus_one = number(1, common.dtype_of(x)), number(-1, common.dtype_of(x))
    u = b.add(x=x, y=one)
    lost = b.sub(x=x, y=b.add(x=u, y=minus_one))
    return b.add(x=log(b, u), y=b.real_div(x=lost, y=u))


@lowers(aten.expm1.default)
def expm1(b: Builder, x: Value) -> Var:
    """exp(x) - 1, as tanh(x/2) (exp(x) + 1): the same value, and no cancellation near zero."""
    half = b.tanh(x=scaled(b, x, 0.5))
    return b.mul(x=half, y=b.add(x=b.exp(x=x), y=number(1, common.dtype_of(x))))


@lowers(aten.abs.default)
def absolute(b: Builder, x: Value) -> Var:
    return b.abs(x=x)


@lowers(aten.sign.default, aten.sgn.default)
def sign(b: Builder, x: Value) -> Var:
    return b.sub(x=common.positive(b, x), y=common.positive(b, scaled(b, x, -1)))


def _function(target: OpOverload, kind: str, *, everywhere: bool) -> None:
    """The ATen function and MIL's are one: same name, one operand. `everywhere`: every chip has a form of it."""

    @lowers(target, needs=() if everywhere else (kind,))
    def rule(b: Builder, x: Value) -> Var:
        return getattr(b, kind)(x=x)


for _target, _kind in (
    (aten.exp.default, "exp"),
    (aten.exp2.default, "exp2"),
    (aten.sqrt.default, "sqrt"),
    (aten.erf.default, "erf"),
):
    _function(_target, _kind, everywhere=True)

for _target, _kind in (
    (aten.sin.default, "sin"),
    (aten.cos.default, "cos"),
    (aten.tan.default, "tan"),
    (aten.asin.default, "asin"),
    (aten.acos.default, "acos"),
    (aten.atan.default, "atan"),
    (aten.sinh.default, "sinh"),
    (aten.cosh.default, "cosh"),
    (aten.atanh.default, "atanh"),
    (aten.floor.default, "floor"),
    (aten.ceil.default, "ceil"),
    (aten.round.default, "round"),
):
    _function(_target, _kind, everywhere=False)


@lowers(aten.erfc.default)
def erfc(b: Builder, x: Value) -> Var:
    return common.one_minus(b, b.erf(x=x))


@lowers(aten.square.default)
def square(b: Builder, x: Value) -> Var:
    return b.mul(x=x, y=x)


@lowers(aten.maximum.default)
def maximum(b: Builder, x: Value, other: Value) -> Var:
    x, other = operands(x, other)
    return b.maximum(x=x, y=other)


@lowers(aten.minimum.default)
def minimum(b: Builder, x: Value, other: Value) -> Var:
    x, other = operands(x, other)
    return b.minimum(x=x, y=other)


@lowers(aten.clamp.default, aten.clamp.Tensor, aten.clamp_min.default, aten.clamp_min.Tensor)
def clamp(b: Builder, x: Value, lowest: Operand | None = None, highest: Operand | None = None) -> Value:
    """min(max(x, lowest), highest): torch lets the upper bound win where they cross."""
    if lowest is not None:
        x = b.maximum(**dict(zip("xy", operands(x, lowest))))
    if highest is not None:
        x = b.minimum(**dict(zip("xy", operands(x, highest))))
    return x


@lowers(aten.clamp_max.default, aten.clamp_max.Tensor)
def clamp_max(b: Builder, x: Value, highest: Operand) -> Value:
    return clamp(b, x, None, highest)


@lowers(aten.hardtanh.default)
def hardtanh(b: Builder, x: Value, lowest: float = -1, highest: float = 1) -> Value:
    return clamp(b, x, lowest, highest)
