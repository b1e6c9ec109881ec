"""Write small arithmetic with add, mul, real_div, maximum, sqrt and pow.

    y = rsqrt(x, epsilon)    ->  y = pow(x + epsilon, -0.5)
    y = inverse(x, epsilon)  ->  y = 1 / (x + epsilon)
    y = square(x)            ->  y = x * x
    y = abs(x)               ->  y = max(x, -x)
    y = minimum(x, y)        ->  y = -max(-x, -y)
    y = clip(x, a, b)        ->  y = -max(-max(x, a), -b)
    y = relu(x)              ->  y = max(x, 0)         y = threshold(x, a)  ->  y = max(x, a)
    y = linear(x, w, bias)   ->  y = matmul(x, w^T) + bias
    y = pow(x, 0.5)          ->  y = sqrt(x)           y = pow(x, -1)       ->  y = 1 / x
    y = sqrt(x)              ->  y = pow(x, 0.5), the other way round, for a chip that does not take sqrt
Nothing moves in exact numbers. In fp16 negations and maxima are exact, so abs, minimum, clip and relu keep
their bits; an epsilon that fp16 cannot hold (rsqrt's default, 1e-12) is left out.
"""

import numpy as np

from torchane.chips import Chip
from torchane.mil.build import Builder
from torchane.mil.ir import Literal, Op, Program, Var
from torchane.mil.types import TensorType
from torchane.passes.rewrite import Rule, literal_like, rewrite, scalar, unless_taken


def decompose_arithmetic(program: Program, chip: Chip | None = None) -> Program:
    rules = dict(unless_taken(RULES, chip))
    if chip is None or chip.takes("sqrt"):
        rules["pow"] = _simple_power
    else:
        rules["sqrt"] = _power_for_root
    return rewrite(program, rules)


def _with_epsilon(b: Builder, op: Op, default: float) -> Var | Literal:
    x, epsilon = op.args["x"], op.value("epsilon", default)
    held = literal_like(epsilon, TensorType(op.output.type.dtype))
    return x if scalar(held) == 0.0 else b.add(x=x, y=held)


def _rsqrt(b: Builder, op: Op) -> Var:
    return b.pow(x=_with_epsilon(b, op, 1e-12), y=-0.5)


def _inverse(b: Builder, op: Op) -> Var:
    return b.real_div(x=1.0, y=_with_epsilon(b, op, 1e-4))


def _square(b: Builder, op: Op) -> Var:
    return b.mul(x=op.args["x"], y=op.args["x"])


def negated(b: Builder, x: Var | Literal) -> Var | Literal:
    """-x; a constant is negated now."""
    if isinstance(x, Literal):
        return Literal(x.type, np.asarray(-x.value))
    return b.mul(x=x, y=-1.0)


def _abs(b: Builder, op: Op) -> Var:
    return b.maximum(x=op.args["x"], y=negated(b, op.args["x"]))


def _minimum(b: Builder, op: Op) -> Var:
    return negated(b, b.maximum(x=negated(b, op.args["x"]), y=negated(b, op.args["y"])))


def _clip(b: Builder, op: Op) -> Var:
    low = b.maximum(x=op.args["x"], y=op.value("alpha"))
    return b.mul(x=b.maximum(x=b.mul(x=low, y=-1.0), y=-op.value("beta")), y=-1.0)


def _relu(b: Builder, op: Op) -> Var:
    return b.maximum(x=op.args["x"], y=0.0)


def _threshold(b: Builder, op: Op) -> Var:
    return b.maximum(x=op.args["x"], y=op.value("alpha", 1.0))


def _linear(b: Builder, op: Op) -> Var:
    product = b.matmul(x=op.args["x"], y=op.args["weight"], transpose_x=False, transpose_y=True)
    bias = op.args.get("bias")
    return product if bias is None else b.add(x=product, y=bias)


def _power_for_root(b: Builder, op: Op) -> Var:
    return b.pow(x=op.args["x"], y=0.5)


def _simple_power(b: Builder, op: Op) -> Var | None:
    """Roots and reciprocals by their own ops, which need no logarithm."""
    exponent = scalar(op.args["y"])
    if exponent is None or op.args["y"].type.rank > op.args["x"].type.rank:
        return None
    if exponent == 0.5:
        return b.sqrt(x=op.args["x"])
    if exponent == -1.0:
        return b.real_div(x=1.0, y=op.args["x"])
    return None


RULES: dict[str, Rule] = {
    "rsqrt": _rsqrt,
    "inverse": _inverse,
    "square": _square,
    "abs": _abs,
    "minimum": _minimum,
    "clip": _clip,
    "relu": _relu,
    "threshold": _threshold,
    "linear": _linear,
}
