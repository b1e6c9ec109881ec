"""Take the middle of a row by a product with a constant of zeros and ones.

    y = slice_by_size(x, begin = [0, 0, 0, 16], size = [1, 8, 4, 16])
        ->  y = matmul(x, E)          # E [1, 1, 32, 16]: ones from row 16 on, one to the right each
Some chips turn values above 4094 into inf when a slice of the last axis does not begin at 0 (ane-constraints.md,
W1); the matmul has its own ceiling, 32752. Slices on other axes stay, after the product. Of a row of more than `LONGEST_PRODUCT`
entries the matrix would cost more than to turn the value round, slice another axis, and turn it back. Runs on rank-4
programs, where the last axis is the one that lies in rows. Same bits.
"""

import numpy as np

from torchane.chips import Chip
from torchane.mil.build import Builder
from torchane.mil.ir import Literal, Op, Program, Var, literal
from torchane.passes.rewrite import rewrite, shape_of

#: Entries of a row that is still multiplied by a matrix: to turn a value costs two copies, a product `width` multiply-adds a number.
LONGEST_PRODUCT = 1024


def lower_row_slices(program: Program, chip: Chip | None = None) -> Program:
    """Every such slice, unless the chip takes them as they are."""
    if chip is not None and all(c.rule != "row_slice_starts_at_zero" for c in chip.op("slice_by_size").conditions):
        return program
    return rewrite(program, {"slice_by_size": _slice})


def _slice(b: Builder, op: Op) -> Var | None:
    x = op.args["x"]
    if not isinstance(op.args["begin"], Literal) or not isinstance(x, Var) or op.value("begin")[-1] == 0:
        return None
    rank, width = x.rank, shape_of(x)[-1]
    begin, size = list(op.value("begin")), list(shape_of(op.output))
    if width > LONGEST_PRODUCT:
        turn = (*range(rank - 2), rank - 1, rank - 2)
        turned = b.slice_by_size(x=b.transpose(x=x, perm=turn), begin=[begin[axis] for axis in turn], size=[size[axis] for axis in turn])
        return b.transpose(x=turned, perm=turn)
    if size[:-1] != list(shape_of(x)[:-1]):
        x = b.slice_by_size(x=x, begin=[*begin[:-1], 0], size=[*size[:-1], width])
    ones = np.eye(width, size[-1], -begin[-1]).reshape(*(1,) * (rank - 2), width, size[-1])
    return b.matmul(x=x, y=literal(ones, op.output.type.dtype), transpose_x=False, transpose_y=False)
