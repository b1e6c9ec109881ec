"""Keep the mean of squares of a row within fp16.

    s = mul(x, x)                              # x (.., 768)
    m = reduce_mean(s, [-1])       ->          t = mul(x, 2^-4);  s = mul(t, t)
                                               m = mul(reduce_sum(s, [-1]), 256 / 768)
Every norm begins with this. As a plain sum it is inf from a root mean square of 9 on, at 768 channels, and the
norm is then silently zero: residual streams get there within a few hundred steps (56 was seen in a model of 1 M
parameters). With x halved k times first, 4^k being n / 4 or more, the sum holds to a root mean square of 127, for one
more product. (The mean itself would hold to 255; the step from there costs small rows their digits.)
The factor is a power of two, so nothing moves but squares that become subnormal: at a root mean square of 0.02
and 2048 channels their mean is off by up to 1 %, at 0.1 by no more than its roundings. In exact numbers the constant
4^k / n is rounded.
"""

import math

from torchane.mil.build import Builder
from torchane.mil.ir import Op, Program, Var
from torchane.passes.rewrite import rewrite, scalar, shape_of

#: Rows this long hold sums of squares up to a root mean square of 127 as they are.
_SHORT_ROW = 4

def scale_squares(program: Program) -> Program:
    producer = program.main.producer

    def mean(b: Builder, op: Op) -> Var | None:
        made = producer.get(op.args["x"]) if isinstance(op.args["x"], Var) else None
        root = None if made is None else _squared(made)
        n = math.prod(shape_of(op.args["x"])) // max(math.prod(shape_of(op.output)), 1)
        if root is None or n <= _SHORT_ROW:
            return None
        halvings = (n - 1).bit_length() - 1 >> 1  # the least k with 4^k >= n / 4
        small = b.mul(x=root, y=2.0**-halvings)
        total = b.reduce_sum(x=b.mul(x=small, y=small), axes=op.args.get("axes"), keep_dims=op.args.get("keep_dims"))
        return b.mul(x=total, y=4.0**halvings / n)

    return rewrite(program, {"reduce_mean": mean})


def _squared(op: Op) -> Var | None:
    """x, if the op is x * x in one of its spellings."""
    x = op.args.get("x")
    if not isinstance(x, Var):
        return None
    is_square = (
        op.kind.name == "square"
        or (op.kind.name == "mul" and op.args["y"] == x)
        or (op.kind.name == "pow" and scalar(op.args["y"]) == 2.0 and x.shape == op.output.shape)
    )
    return x if is_square else None
