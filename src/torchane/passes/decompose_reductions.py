"""Write reductions with reduce_sum and reduce_max.

    y = reduce_mean(x)         ->  y = reduce_sum(x) * (1 / n)
    y = reduce_min(x)          ->  y = -reduce_max(-x)
    y = reduce_sum_square(x)   ->  y = reduce_sum(x * x)
    y = reduce_l1_norm(x)      ->  y = reduce_sum(|x|)
    y = reduce_l2_norm(x)      ->  y = sqrt(reduce_sum(x * x))
    y = reduce_log_sum_exp(x)  ->  m = reduce_max(x);  y = m + log(reduce_sum(exp(x - m)))
and reduce_log_sum. Nothing moves in exact numbers. In fp16 the factor 1 / n is rounded, by at most 2^-12 of
itself, and a sum overflows at 65504 where a mean would not. So a mean of more than 4096 numbers (a loss over a batch of
images) is taken axis by axis, and along an axis longer than 1024 of x * 2^-k: each sum overflows only where the mean of its
part is 63 or more. What that costs: numbers below 2^(k - 14) lose digits, at most 2^(k - 25) each.
"""

import math

from torchane.chips import Chip
from torchane.mil.build import Builder
from torchane.mil.ir import Literal, Op, Program, Var
from torchane.passes.rewrite import Rule, rewrite, shape_of, unless_taken

#: Up to it a mean is one sum, which overflows where the mean is 16 or more.
_LONG_MEAN = 2**12

#: How many halvings a part's mean may stand below its sum.
_PART_BITS = 10


def decompose_reductions(program: Program, chip: Chip | None = None) -> Program:
    return rewrite(program, unless_taken(RULES, chip))


def _reduced(b: Builder, kind: str, x: Var | Literal, op: Op) -> Var:
    return getattr(b, kind)(x=x, axes=op.args.get("axes"), keep_dims=op.args.get("keep_dims"))


def _mean(b: Builder, op: Op) -> Var:
    x = op.args["x"]
    shape = shape_of(x)
    n = math.prod(shape) // max(math.prod(shape_of(op.output)), 1)
    if n <= _LONG_MEAN:
        return b.mul(x=_reduced(b, "reduce_sum", x, op), y=1.0 / n)
    for axis in sorted((axis % len(shape) for axis in op.value("axes", range(len(shape)))), reverse=True):
        x = _mean_along(b, x, axis, shape[axis])
    return x if shape_of(x) == shape_of(op.output) else b.reshape(x=x, shape=shape_of(op.output))


def _mean_along(b: Builder, x: Var | Literal, axis: int, n: int) -> Var | Literal:
    """The mean along one axis, which stays with size 1."""
    if n == 1:
        return x
    factor = 2.0 ** -max((n - 1).bit_length() - _PART_BITS, 0)
    part = x if factor == 1.0 else b.mul(x=x, y=factor)
    return b.mul(x=b.reduce_sum(x=part, axes=(axis,), keep_dims=True), y=1.0 / (n * factor))


def _min(b: Builder, op: Op) -> Var:
    return b.mul(x=_reduced(b, "reduce_max", b.mul(x=op.args["x"], y=-1.0), op), y=-1.0)


def _sum_square(b: Builder, op: Op) -> Var:
    return _reduced(b, "reduce_sum", b.mul(x=op.args["x"], y=op.args["x"]), op)


def _l1_norm(b: Builder, op: Op) -> Var:
    return _reduced(b, "reduce_sum", b.abs(x=op.args["x"]), op)


def _l2_norm(b: Builder, op: Op) -> Var:
    return b.sqrt(x=_sum_square(b, op))


def _log_sum(b: Builder, op: Op) -> Var:
    return b.log(x=_reduced(b, "reduce_sum", op.args["x"], op), epsilon=0.0)


def _log_sum_exp(b: Builder, op: Op) -> Var:
    x = op.args["x"]
    largest = b.reduce_max(x=x, axes=op.args.get("axes"), keep_dims=True)
    total = _reduced(b, "reduce_sum", b.exp(x=b.sub(x=x, y=largest)), op)
    return b.add(x=b.log(x=total, epsilon=0.0), y=b.reshape(x=largest, shape=shape_of(op.output)))


RULES: dict[str, Rule] = {
    "reduce_mean": _mean,
    "reduce_min": _min,
    "reduce_sum_square": _sum_square,
    "reduce_l1_norm": _l1_norm,
    "reduce_l2_norm": _l2_norm,
    "reduce_log_sum": _log_sum,
    "reduce_log_sum_exp": _log_sum_exp,
}
