"""Sum in parts what is longer than the chip's matmul takes.

    y = matmul(x, w)          x [..., M, K], w [..., K, N]
        ->  p = matmul(x', w')     x' [..., n, M, K/n], w' [..., n, K/n, N]
            y = reduce_sum(p)      over n
A weight's gradient sums over every token of the batch, or every pixel of an image. n is the least divisor of K whose parts are short enough; where it
is large (p is n times y) or there is none, the op stays and the chip refuses it. The parts are rounded to fp16
before they are added.
"""

import math

from torchane.chips import Chip
from torchane.mil.build import Builder
from torchane.mil.ir import Arg, Op, Program, Var
from torchane.passes.rewrite import rewrite, shape_of

#: More parts are more memory than the sum is worth.
_MOST_PARTS = 16


def split_sums(program: Program, chip: Chip | None = None) -> Program:
    """Every matmul whose sum is too long; without a chip, none."""
    longest = None if chip is None else chip.longest_sum
    if longest is None:
        return program
    return rewrite(program, {"matmul": lambda b, op: _matmul(b, op, longest)})


def _matmul(b: Builder, op: Op, longest: int) -> Var | None:
    x, y = op.args["x"], op.args["y"]
    is_turned = op.value("transpose_x", False), op.value("transpose_y", False)
    rank = len(shape_of(x))
    if rank < 2 or shape_of(x)[:-2] != shape_of(y)[:-2]:
        return None  # one matrix for several: a trained one, whose rows are no tokens
    size = shape_of(x)[-2 if is_turned[0] else -1]
    if size <= longest:
        return None
    count = next((n for n in range(2, _MOST_PARTS + 1) if size % n == 0 and size // n <= longest), None)
    if count is None:
        return None
    parts = b.matmul(
        x=_parted(b, x, 0 if is_turned[0] else 1, count), y=_parted(b, y, 1 if is_turned[1] else 0, count),
        transpose_x=is_turned[0], transpose_y=is_turned[1],
    )  # fmt: skip
    return b.reshape(x=b.reduce_sum(x=parts, axes=[len(shape_of(parts)) - 3], keep_dims=True), shape=shape_of(op.output))


def _parted(b: Builder, x: Arg, axis: int, count: int) -> Var:
    """Matrices (all before the last two axes as one) as `count` matrices each, of neighbouring rows (axis 0) or columns."""
    *before, rows, columns = shape_of(x)
    lead = [math.prod(before)] if before else []
    if axis == 0:
        return b.reshape(x=x, shape=[*lead, count, rows // count, columns])
    parts = b.reshape(x=x, shape=[*lead, rows, count, columns // count])
    return b.transpose(x=parts, perm=[*range(len(lead)), *(len(lead) + i for i in (1, 0, 2))])
