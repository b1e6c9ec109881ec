"""Write what a chip takes in other ops that it takes: the second try for a program whose numbers were wrong.

    y = softmax(x, axis)          ->  e = exp(x - reduce_max(x));  y = e / reduce_sum(e)
    y = pow(x, -0.5)              ->  y = 1 / sqrt(x)               y = sqrt(x)  ->  y = pow(x, 0.5)
    y = sigmoid(x)                ->  y = 1 / (1 + exp(-x))
    y = matmul(x, w, transposed)  ->  y = matmul(transpose(x), w)
    y = conv(x, w), 1 x 1         ->  y = reshape(matmul(w', reshape(x)))
No pass of the pipeline: capture hands it to a device, which asks for it where an engine computes the usual spelling wrong. Nothing moves in exact numbers;
in fp16 each new op rounds once more.
"""

import numpy as np

from torchane.chips import Chip
from torchane.mil.build import Builder
from torchane.mil.ir import Literal, Op, Program, Var, literal
from torchane.passes.rewrite import Rule, rewrite, scalar, shape_of


def respell(program: Program, chip: Chip | None = None) -> Program:
    """The program in other ops, as far as there are rules; equal to what it was where there are none for it."""
    rules = RULES if chip is None else {kind: rule for kind, rule in RULES.items() if all(map(chip.takes, NEEDS[kind]))}
    return rewrite(program, rules)


def _softmax(b: Builder, op: Op) -> Var:
    x, axis = op.args["x"], op.value("axis", -1)
    e = b.exp(x=b.sub(x=x, y=b.reduce_max(x=x, axes=(axis,), keep_dims=True)))
    return b.real_div(x=e, y=b.reduce_sum(x=e, axes=(axis,), keep_dims=True))


def _pow(b: Builder, op: Op) -> Var | None:
    return b.real_div(x=1.0, y=b.sqrt(x=op.args["x"])) if scalar(op.args["y"]) == -0.5 else None  # type: ignore[arg-type]


def _sqrt(b: Builder, op: Op) -> Var:
    return b.pow(x=op.args["x"], y=0.5)


def _sigmoid(b: Builder, op: Op) -> Var:
    """exp(-x) = inf gives 1 / inf = 0."""
    return b.real_div(x=1.0, y=b.add(x=b.exp(x=b.mul(x=op.args["x"], y=-1.0)), y=1.0))


def _matmul(b: Builder, op: Op) -> Var | None:
    turned = [op.value(f"transpose_{side}", False) for side in "xy"]
    if not any(turned):
        return None
    x, y = (_turned(b, op.args[side]) if turn else op.args[side] for side, turn in zip("xy", turned, strict=True))
    return b.matmul(x=x, y=y)


def _turned(b: Builder, x: Var | Literal) -> Var:
    rank = len(shape_of(x))
    return b.transpose(x=x, perm=(*range(rank - 2), rank - 1, rank - 2))


def _conv(b: Builder, op: Op) -> Var | None:
    """1 x 1 with constant weights over (1, C, 1, S), nothing beside: a product of two matrices."""
    x, weight = op.args["x"], op.args["weight"]
    shape = shape_of(x)
    if not isinstance(weight, Literal) or not isinstance(weight.value, np.ndarray) or set(op.args) - _PLAIN or "bias" in op.args:
        return None
    if len(shape) != 4 or shape[0] != 1 or shape[2] != 1 or shape_of(weight)[1:] != (shape[1], 1, 1) or shape_of(op.output)[2:] != shape[2:]:
        return None
    rows = b.reshape(x=x, shape=(1, 1, shape[1], shape[3]))
    matrix = literal(weight.value.reshape(1, 1, *shape_of(weight)[:2]), op.output.type.dtype)
    return b.reshape(x=b.matmul(x=matrix, y=rows), shape=shape_of(op.output))


#: Arguments of a convolution that a 1 x 1 one of that shape cannot change anything by.
_PLAIN = {"x", "weight", "strides", "pad_type", "pad", "dilations", "groups"}
RULES: dict[str, Rule] = {"softmax": _softmax, "pow": _pow, "sqrt": _sqrt, "sigmoid": _sigmoid, "matmul": _matmul, "conv": _conv}
#: What a rule writes, by the op that it writes otherwise.
NEEDS = {
    "softmax": ("exp", "sub", "reduce_max", "reduce_sum", "real_div"), "pow": ("sqrt", "real_div"), "sqrt": ("pow",),
    "sigmoid": ("exp", "add", "mul", "real_div"), "matmul": ("transpose", "matmul"), "conv": ("reshape", "matmul"),
}  # fmt: skip
