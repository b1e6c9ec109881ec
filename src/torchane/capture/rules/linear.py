"""Products of matrices. The transposes that torch writes beside them are folded in by passes.

Factors of two dtypes are left to PyTorch, whose error is then the one that eager mode gives.
"""

import torch

from torchane.capture.rules import common
from torchane.capture.rules.common import of_one_dtype, scaled
from torchane.capture.rules.registry import Value, lowers
from torchane.mil.build import Builder

aten = torch.ops.aten


@lowers(aten.mm.default, aten.bmm.default, when=of_one_dtype)
def mm(b: Builder, x: Value, other: Value) -> Value:
    return b.matmul(x=x, y=other, transpose_x=False, transpose_y=False)


@lowers(aten.addmm.default, aten.baddbmm.default, when=of_one_dtype)
def addmm(b: Builder, x: Value, first: Value, second: Value, *, beta: float = 1, alpha: float = 1) -> Value:
    """beta * x + alpha * first @ second."""
    product = scaled(b, mm(b, first, second), alpha)
    if beta == 0:  # torch: x is ignored then, whatever it holds
        return product
    return b.add(x=product, y=scaled(b, x, beta))


@lowers(aten.mv.default, when=of_one_dtype)
def mv(b: Builder, x: Value, vector: Value) -> Value:
    column = common.reshaped(b, vector, (-1, 1))
    return common.reshaped(b, mm(b, x, column), (-1,))


@lowers(aten.dot.default, when=of_one_dtype)
def dot(b: Builder, x: Value, other: Value) -> Value:
    row, column = common.reshaped(b, x, (1, -1)), common.reshaped(b, other, (-1, 1))
    return common.reshaped(b, mm(b, row, column), ())


@lowers(aten.addmv.default, when=of_one_dtype)
def addmv(b: Builder, x: Value, matrix: Value, vector: Value, *, beta: float = 1, alpha: float = 1) -> Value:
    product = scaled(b, mv(b, matrix, vector), alpha)
    return product if beta == 0 else b.add(x=product, y=scaled(b, x, beta))
