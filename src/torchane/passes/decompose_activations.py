"""Write activations with the functions that every chip has: exp, tanh, sigmoid, maximum.

    y = silu(x)       ->  y = x * sigmoid(x), or x / (1 + exp(-x)) where the chip prefers it
    y = gelu(x)       ->  y = (0.5 * x) * (1 + erf(x / sqrt 2)), erf as below; by mode also with tanh or sigmoid
    y = erf(x)        ->  y = tanh(x * (1.12967581 + 0.09979272 * x * x))
    y = softplus(x)   ->  y = max(x, 0) + t * p(t),  t = exp(-|x|),  p of degree 4
and relu6, leaky_relu, prelu, elu, sigmoid_hard, scaled_tanh, clamped_relu, linear_activation, softsign, exp2.

How far it moves, in exact numbers: erf 2.9e-4 (our fit, minimax over the axis: finer than half an fp16 step
at 1, and a third of the engine's own erf table, 8.6e-4); gelu 3e-4 * |x| / 2; softplus 9e-5; the rest nothing.
Large x ends in 0 or 1 as it should: an overflowing square makes tanh 1.
"""

import math

from torchane.chips import Chip
from torchane.mil.build import Builder
from torchane.mil.ir import Literal, Op, Program, Var, literal
from torchane.passes.rewrite import Rule, rewrite, unless_taken

#: erf(x) = tanh(x * (a + b * x^2)): the largest error, 2.9e-4, is reached at three points of either sign.
_ERF = (1.12967581, 0.09979272)

#: log(1 + t) = t * p(t) for t in [0, 1], Chebyshev nodes; error 8.1e-5.
_LOG1P = (0.99988817, -0.49637067, 0.30467903, -0.15603506, 0.04106648)


def decompose_activations(program: Program, chip: Chip | None = None) -> Program:
    rules = {**RULES, "silu": _silu_by_exp} if chip is not None and chip.prefers.get("silu") == "exp" else RULES
    return rewrite(program, unless_taken(rules, chip))


def _silu_by_exp(b: Builder, op: Op) -> Var:
    """For chips whose table of sigmoid is too coarse, by their data. exp(-x) = inf gives x / inf = 0."""
    x = op.args["x"]
    return b.real_div(x=x, y=b.add(x=b.exp(x=b.mul(x=x, y=-1.0)), y=1.0))


def _silu(b: Builder, op: Op) -> Var:
    return b.mul(x=op.args["x"], y=b.sigmoid(x=op.args["x"]))


def _gelu(b: Builder, op: Op) -> Var:
    x, mode = op.args["x"], op.value("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return b.mul(x=x, y=b.sigmoid(x=b.mul(x=x, y=1.702)))
    if mode == "TANH_APPROXIMATION":
        root = math.sqrt(2 / math.pi)
        curve = _odd_tanh(b, x, root, root * 0.044715)
    else:
        # erf's curve with 1 / sqrt 2 folded into its coefficients
        curve = _odd_tanh(b, x, _ERF[0] / math.sqrt(2), _ERF[1] / math.sqrt(8))
    return b.mul(x=b.mul(x=x, y=0.5), y=b.add(x=curve, y=1.0))


def _erf(b: Builder, op: Op) -> Var:
    return _odd_tanh(b, op.args["x"], *_ERF)


def _odd_tanh(b: Builder, x: Var | Literal, linear: float, cubic: float) -> Var:
    """tanh(x * (linear + cubic * x^2))"""
    return b.tanh(x=b.mul(x=x, y=b.add(x=b.mul(x=b.mul(x=x, y=x), y=cubic), y=linear)))


def _softplus(b: Builder, op: Op) -> Var:
    x = op.args["x"]
    positive = b.maximum(x=x, y=0.0)
    # -|x| = x - 2 max(x, 0)
    t = b.exp(x=b.sub(x=x, y=b.mul(x=positive, y=2.0)))
    p = b.mul(x=t, y=_LOG1P[-1])
    for coefficient in reversed(_LOG1P[1:-1]):
        p = b.mul(x=b.add(x=p, y=coefficient), y=t)
    return b.add(x=positive, y=b.mul(x=b.add(x=p, y=_LOG1P[0]), y=t))


def _softsign(b: Builder, op: Op) -> Var:
    x = op.args["x"]
    return b.real_div(x=x, y=b.add(x=b.abs(x=x), y=1.0))


def _relu6(b: Builder, op: Op) -> Var:
    return b.minimum(x=b.maximum(x=op.args["x"], y=0.0), y=6.0)


def _leaky_relu(b: Builder, op: Op) -> Var:
    """max(x, 0) + alpha * min(x, 0), for any alpha."""
    return _two_slopes(b, op.args["x"], op.value("alpha", 0.01))


def _prelu(b: Builder, op: Op) -> Var:
    """alpha holds one slope per channel, x is (N, C, ...)."""
    alpha = op.args["alpha"]
    assert isinstance(alpha, Literal), f"{op.name}: prelu's alpha is a constant"
    shape = (-1, *[1] * (op.output.rank - 2))
    return _two_slopes(b, op.args["x"], alpha.value.reshape(shape))


def _two_slopes(b: Builder, x: Var | Literal, slope: object) -> Var:
    return b.add(x=b.maximum(x=x, y=0.0), y=b.mul(x=b.minimum(x=x, y=0.0), y=slope))


def _elu(b: Builder, op: Op) -> Var:
    """max(x, 0) + alpha * (exp(min(x, 0)) - 1): the exponential never overflows."""
    x = op.args["x"]
    below = b.sub(x=b.exp(x=b.minimum(x=x, y=0.0)), y=1.0)
    return b.add(x=b.maximum(x=x, y=0.0), y=b.mul(x=below, y=op.value("alpha", 1.0)))


def _sigmoid_hard(b: Builder, op: Op) -> Var:
    line = b.add(x=b.mul(x=op.args["x"], y=op.value("alpha", 0.2)), y=op.value("beta", 0.5))
    return b.minimum(x=b.maximum(x=line, y=0.0), y=1.0)


def _scaled_tanh(b: Builder, op: Op) -> Var:
    return b.mul(x=b.tanh(x=b.mul(x=op.args["x"], y=op.value("beta", 1.0))), y=op.value("alpha", 1.0))


def _clamped_relu(b: Builder, op: Op) -> Var:
    """min(beta, x) where x >= 0, else min(beta, alpha * x)."""
    return b.minimum(x=_two_slopes(b, op.args["x"], op.value("alpha", 1.0)), y=op.value("beta", 1.0))


def _linear_activation(b: Builder, op: Op) -> Var:
    return b.add(x=b.mul(x=op.args["x"], y=op.value("alpha", 1.0)), y=op.value("beta", 0.0))


def _thresholded_relu(b: Builder, op: Op) -> Var:
    """x where x >= alpha, else 0."""
    x, alpha = op.args["x"], op.value("alpha", 1.0)
    above = b.greater_equal(x=x, y=literal(alpha, op.output.type.dtype))
    return b.mul(x=x, y=b.cast(x=above, dtype=op.output.type.dtype.mil_name))


def _exp2(b: Builder, op: Op) -> Var:
    return b.exp(x=b.mul(x=op.args["x"], y=math.log(2)))


RULES: dict[str, Rule] = {
    "silu": _silu,
    "gelu": _gelu,
    "erf": _erf,
    "softplus": _softplus,
    "softsign": _softsign,
    "relu6": _relu6,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "elu": _elu,
    "sigmoid_hard": _sigmoid_hard,
    "scaled_tanh": _scaled_tanh,
    "clamped_relu": _clamped_relu,
    "linear_activation": _linear_activation,
    "thresholded_relu": _thresholded_relu,
    "exp2": _exp2,
}
