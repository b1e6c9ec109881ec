"""Activations and their gradients.

Gradients take the function's saved input or output, as torch hands it over. Steps (x > 0) are
`common.positive`; what would leave fp16 for a large input (x**3) is computed on a clamped one.
"""

import math

import torch
from torch.fx import Node

from torchane.capture.rules import common
from torchane.capture.rules.common import number, one_minus, positive, scaled
from torchane.capture.rules.elementwise import clamp, expm1
from torchane.capture.rules.registry import Value, lowers, values
from torchane.mil.build import Builder

aten = torch.ops.aten


def plus(b: Builder, x: Value, amount: float) -> Value:
    return b.add(x=x, y=number(amount, common.dtype_of(x))) if amount else x


@lowers(aten.relu.default)
def relu(b: Builder, x: Value) -> Value:
    return b.relu(x=x)


@lowers(aten.threshold_backward.default)
def threshold_backward(b: Builder, grad: Value, x: Value, threshold: float) -> Value:
    return b.mul(x=grad, y=positive(b, plus(b, x, -threshold)))


@lowers(aten.leaky_relu.default)
def leaky_relu(b: Builder, x: Value, slope: float = 0.01) -> Value:
    below = scaled(b, x, slope)
    return b.maximum(x=x, y=below) if slope <= 1 else b.minimum(x=x, y=below)


@lowers(aten.leaky_relu_backward.default)
def leaky_relu_backward(b: Builder, grad: Value, x: Value, slope: float, self_is_result: bool) -> Value:
    """The result has the sign of x (torch refuses negative slopes there), so it serves as well."""
    return b.mul(x=grad, y=plus(b, scaled(b, positive(b, x), 1 - slope), slope))


@lowers(aten.sigmoid.default)
def sigmoid(b: Builder, x: Value) -> Value:
    return b.sigmoid(x=x)


@lowers(aten.sigmoid_backward.default)
def sigmoid_backward(b: Builder, grad: Value, output: Value) -> Value:
    return b.mul(x=grad, y=b.mul(x=output, y=one_minus(b, output)))


@lowers(aten.tanh.default)
def tanh(b: Builder, x: Value) -> Value:
    return b.tanh(x=x)


@lowers(aten.tanh_backward.default)
def tanh_backward(b: Builder, grad: Value, output: Value) -> Value:
    return b.mul(x=grad, y=one_minus(b, b.mul(x=output, y=output)))


@lowers(aten.silu.default)
def silu(b: Builder, x: Value) -> Value:
    return b.silu(x=x)


@lowers(aten.silu_backward.default)
def silu_backward(b: Builder, grad: Value, x: Value) -> Value:
    """g * s * (1 + x * (1 - s)), s = sigmoid(x)."""
    s = b.sigmoid(x=x)
    slope = b.mul(x=s, y=plus(b, b.mul(x=x, y=one_minus(b, s)), 1))
    return b.mul(x=grad, y=slope)


_GELU_MODES = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}
#: Beyond it either gelu is 0 or x to more digits than fp16 has, and its slope 0 or 1.
_GELU_BOUND = 10.0


@lowers(aten.gelu.default)
def gelu(b: Builder, x: Value, *, approximate: str = "none") -> Value:
    return b.gelu(x=x, mode=_GELU_MODES[approximate])


@lowers(aten.gelu_backward.default)
def gelu_backward(b: Builder, grad: Value, x: Value, *, approximate: str = "none") -> Value:
    near = clamp(b, x, -_GELU_BOUND, _GELU_BOUND)
    slope = _gelu_slope_tanh(b, near) if approximate == "tanh" else _gelu_slope(b, near)
    return b.mul(x=grad, y=slope)


def _gelu_slope(b: Builder, x: Value) -> Value:
    """Phi(x) + x * phi(x), the normal distribution and its density."""
    below = scaled(b, plus(b, b.erf(x=scaled(b, x, math.sqrt(0.5))), 1), 0.5)
    density = scaled(b, b.exp(x=scaled(b, b.mul(x=x, y=x), -0.5)), 1 / math.sqrt(2 * math.pi))
    return b.add(x=below, y=b.mul(x=x, y=density))


def _gelu_slope_tanh(b: Builder, x: Value) -> Value:
    """Of 0.5 x (1 + t), t = tanh(k (x + c x^3)): 0.5 (1 + t) + 0.5 x (1 - t^2) k (1 + 3 c x^2).
    Source: Hendrycks & Gimpel 2016, arXiv 1606.08415.
    """
    k, c = math.sqrt(2 / math.pi), 0.044715
    squared = b.mul(x=x, y=x)
    t = b.tanh(x=b.mul(x=x, y=plus(b, scaled(b, squared, k * c), k)))
    inner = plus(b, scaled(b, squared, 1.5 * k * c), 0.5 * k)
    bend = b.mul(x=b.mul(x=x, y=one_minus(b, b.mul(x=t, y=t))), y=inner)
    return b.add(x=scaled(b, plus(b, t, 1), 0.5), y=bend)


@lowers(aten.elu.default)
def elu(b: Builder, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    """scale * (max(x, 0) + alpha * (exp(input_scale * min(x, 0)) - 1)): exp stays below 1, and nothing cancels near 0."""
    curve = expm1(b, scaled(b, clamp(b, x, None, 0.0), input_scale))
    return scaled(b, b.add(x=clamp(b, x, 0.0), y=scaled(b, curve, alpha)), scale)


@lowers(aten.elu_backward.default)
def elu_backward(
    b: Builder, grad: Value, alpha: float, scale: float, input_scale: float, is_result: bool, x: Value
) -> Value:
    """`x` is the input, or with is_result the output, from which exp is the output plus scale * alpha."""
    above = positive(b, x)
    low = clamp(b, x, None, 0.0)
    if is_result:
        curve = scaled(b, plus(b, low, scale * alpha), input_scale)
    else:
        curve = scaled(b, b.exp(x=scaled(b, low, input_scale)), scale * alpha * input_scale)
    slope = b.add(x=scaled(b, above, scale), y=b.mul(x=one_minus(b, above), y=curve))
    return b.mul(x=grad, y=slope)


@lowers(aten.hardtanh_backward.default)
def hardtanh_backward(b: Builder, grad: Value, x: Value, lowest: float, highest: float) -> Value:
    return b.mul(x=grad, y=_inside(b, x, lowest, highest))


def _inside(b: Builder, x: Value, lowest: float, highest: float) -> Value:
    """1 where lowest < x < highest."""
    low = positive(b, plus(b, x, -lowest))
    return b.mul(x=low, y=positive(b, plus(b, scaled(b, x, -1), highest)))


@lowers(aten.hardsigmoid.default)
def hardsigmoid(b: Builder, x: Value) -> Value:
    return clamp(b, plus(b, scaled(b, x, 1 / 6), 0.5), 0.0, 1.0)


@lowers(aten.hardsigmoid_backward.default)
def hardsigmoid_backward(b: Builder, grad: Value, x: Value) -> Value:
    return scaled(b, hardtanh_backward(b, grad, x, -3.0, 3.0), 1 / 6)


@lowers(aten.hardswish.default)
def hardswish(b: Builder, x: Value) -> Value:
    return b.mul(x=x, y=hardsigmoid(b, x))


@lowers(aten.hardswish_backward.default)
def hardswish_backward(b: Builder, grad: Value, x: Value) -> Value:
    """0 up to -3, then x / 3 + 1/2, and 1 from 3 on."""
    near = clamp(b, x, -3.0, 3.0)
    slope = b.mul(x=_inside(b, x, -3.0, 3.0), y=plus(b, scaled(b, near, 1 / 3), 0.5))
    beyond = one_minus(b, positive(b, plus(b, scaled(b, x, -1), 3)))
    return b.mul(x=grad, y=b.add(x=slope, y=beyond))


def _late_threshold(node: Node) -> str | None:
    (threshold,) = values(node, "threshold")
    return None if threshold >= 15 else f"its threshold {threshold} is low enough to show in the result"


@lowers(aten.softplus.default, when=_late_threshold)
def softplus(b: Builder, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    """log(1 + exp(beta x)) / beta; beyond the threshold torch gives x, which is the same number there."""
    return scaled(b, b.softplus(x=scaled(b, x, beta)), 1 / beta)


@lowers(aten.softplus_backward.default, when=_late_threshold)
def softplus_backward(b: Builder, grad: Value, x: Value, beta: float, threshold: float) -> Value:
    return b.mul(x=grad, y=b.sigmoid(x=scaled(b, x, beta)))
