"""Normalisations: softmax and the norms."""

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.types import TensorType

softmax = OpKind("softmax")


@softmax.infers
def _(x: TensorType, axis: int = -1) -> TensorType:
    if not -x.rank <= axis < x.rank:
        raise CompileError(f"softmax: axis {axis} for x {x}; it runs from {-x.rank} to {x.rank - 1}.")
    return x


@softmax.evaluates
def _(x: np.ndarray, axis: int = -1) -> np.ndarray:
    with np.errstate(all="ignore"):
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        return e / e.sum(axis=axis, keepdims=True)
