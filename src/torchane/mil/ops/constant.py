"""Constants, casts and the op that only names a value."""

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.types import DTYPES, TensorType

# const keeps its value in the attribute `val`: it has no arguments and no rules.
const = OpKind("const", operands=())

identity = OpKind("identity")


@identity.infers
def _(x: TensorType) -> TensorType:
    return x


@identity.evaluates
def _(x: np.ndarray) -> np.ndarray:
    return x


cast = OpKind("cast")


@cast.infers
def _(x: TensorType, dtype: str) -> TensorType:
    if dtype not in DTYPES:
        raise CompileError(f"cast: {dtype!r} is not an element type of MIL. Known: {', '.join(DTYPES)}.")
    return TensorType(DTYPES[dtype], x.shape)


@cast.evaluates
def _(x: np.ndarray, dtype: str) -> np.ndarray:
    """Towards zero from float to integer, to nearest even between floats."""
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(DTYPES[dtype].numpy)
