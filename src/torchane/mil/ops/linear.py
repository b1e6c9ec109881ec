"""Products of matrices: matmul (both operands may be values of run time)."""

import math

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.elementwise import broadcast
from torchane.mil.types import TensorType

matmul = OpKind("matmul", operands=("x", "y"))


@matmul.infers
def _(x: TensorType, y: TensorType, transpose_x: bool = False, transpose_y: bool = False) -> TensorType:
    """(..., M, K) @ (..., K, N) -> (..., M, N), in the dtype of x; leading axes broadcast."""
    if x.rank < 2 or y.rank < 2:
        raise CompileError(f"matmul: x is {x} and y is {y}; both need at least two axes.")
    m, k = x.shape[-2:] if not transpose_x else x.shape[:-3:-1]
    k_of_y, n = y.shape[-2:] if not transpose_y else y.shape[:-3:-1]
    if k != k_of_y and None not in (k, k_of_y):
        raise CompileError(
            f"matmul: the inner sizes are {k} and {k_of_y}, for x {x} and y {y} "
            f"(transpose_x {transpose_x}, transpose_y {transpose_y}). x's last axis meets y's second to last."
        )
    batch = broadcast("matmul", TensorType(x.dtype, x.shape[:-2]), TensorType(y.dtype, y.shape[:-2]))
    return TensorType(x.dtype, (*batch, m, n))


@matmul.evaluates
def _(x: np.ndarray, y: np.ndarray, transpose_x: bool = False, transpose_y: bool = False) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.matmul(x.swapaxes(-1, -2) if transpose_x else x, y.swapaxes(-1, -2) if transpose_y else y)


@matmul.costs
def _(x: TensorType, y: TensorType, transpose_x: bool = False, transpose_y: bool = False) -> int:
    k = x.shape[-2] if transpose_x else x.shape[-1]
    return math.prod(matmul.infer(dict(x=x, y=y, transpose_x=transpose_x, transpose_y=transpose_y))[0].shape) * k
