"""Products of matrices. The transposes that torch writes beside them are folded in by passes."""

import torch

from torchane.capture.rules import common
from torchane.capture.rules.common import scaled
from torchane.capture.rules.registry import Value, lowers
from torchane.mil.build import Builder

aten = torch.ops.aten


@lowers(aten.mm.default, aten.bmm.default)
def mm(b: Builder, x: Value, other: Value) -> Value:
    return b.matmul(x=x, y=other, transpose_x=False, transpose_y=False)


@lowers(aten.addmm.default, aten.baddbmm.default)
def addmm(b: Builder, x: Value, first: Value, second: Value, *, beta: float = 1, alpha: float = 1) -> Value:
    """beta * x + alpha * first @ second."""
    product = scaled(b, mm(b, first, second), alpha)
    if beta == 0:  # torch: x is ignored then, whatever it holds
        return product
    return b.add(x=product, y=scaled(b, x, beta))


@lowers(aten.mv.default)
def mv(b: Builder, x: Value, vector: Value) -> Value:
    column = common.reshaped(b, vector, (-1, 1))
    return common.reshaped(b, mm(b, x, column), (-1,))


@lowers(aten.dot.default)
def dot(b: Builder, x: Value, other: Value) -> Value:
    row, column = common.reshaped(b, x, (1, -1)), common.reshaped(b, other, (-1, 1))
    return common.reshaped(b, mm(b, row, column), ())


@lowers(aten.addmv.default)
def addmv(b: Builder, x: Value, matrix: Value, vector: Value, *, beta: float = 1, alpha: float = 1) -> Value:
    product = scaled(b, mv(b, matrix, vector), alpha)
    return product if beta == 0 else b.add(x=product, y=scaled(b, x, beta))
