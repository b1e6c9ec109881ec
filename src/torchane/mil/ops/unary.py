"""Element-wise functions of one operand.

Source: coremltools, mil/ops/defs/iOS15/elementwise_unary.py; from iOS17 an epsilon may have another
float type than x, which our rules always allow.
"""

import math
from collections.abc import Callable

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import require_float, require_numbers
from torchane.mil.types import BOOL, TensorType


def _unary(name: str, function: Callable[[np.ndarray], np.ndarray], *, integers: bool = False) -> OpKind:
    kind = OpKind(name)
    check = require_numbers if integers else require_float

    @kind.infers
    def _(x: TensorType) -> TensorType:
        check(name, x=x)
        return x

    @kind.evaluates
    def _(x: np.ndarray) -> np.ndarray:
        return function(x)

    return kind


def _with_epsilon(name: str, function: Callable[[np.ndarray], np.ndarray], default: float) -> OpKind:
    """function(x + epsilon); a default epsilon is rounded to the type of x, so that it is 0 in fp16 for log."""
    kind = OpKind(name)

    @kind.infers
    def _(x: TensorType, epsilon: float = default) -> TensorType:
        require_float(name, x=x)
        return x

    @kind.evaluates
    def _(x: np.ndarray, epsilon: float = default) -> np.ndarray:
        return function(x + epsilon)

    return kind


abs = _unary("abs", np.abs, integers=True)
sign = _unary("sign", np.sign, integers=True)
square = _unary("square", np.square, integers=True)
exp2 = _unary("exp2", np.exp2, integers=True)
exp = _unary("exp", np.exp)
sqrt = _unary("sqrt", np.sqrt)
ceil = _unary("ceil", np.ceil)
floor = _unary("floor", np.floor)
round = _unary("round", np.round)  # halves go to the even neighbour
sin = _unary("sin", np.sin)
cos = _unary("cos", np.cos)
tan = _unary("tan", np.tan)
asin = _unary("asin", np.arcsin)
acos = _unary("acos", np.arccos)
atan = _unary("atan", np.arctan)
sinh = _unary("sinh", np.sinh)
cosh = _unary("cosh", np.cosh)
tanh = _unary("tanh", np.tanh)
atanh = _unary("atanh", np.arctanh)
erf = _unary("erf", np.vectorize(math.erf, otypes=[np.float64]))  # NumPy has no erf

log = _with_epsilon("log", np.log, 1e-45)
rsqrt = _with_epsilon("rsqrt", lambda x: 1 / np.sqrt(x), 1e-12)
inverse = _with_epsilon("inverse", lambda x: 1 / x, 1e-4)

logical_not = OpKind("logical_not")


@logical_not.infers
def _(x: TensorType) -> TensorType:
    if x.dtype != BOOL:
        raise CompileError(f"logical_not: x is {x} and must hold bools.")
    return x


@logical_not.evaluates
def _(x: np.ndarray) -> np.ndarray:
    return np.logical_not(x)


clip = OpKind("clip")


@clip.infers
def _(x: TensorType, alpha: float, beta: float) -> TensorType:
    """Into [alpha, beta]. iOS17 refuses alpha >= beta; before, beta wins, so equal bounds are let through."""
    require_float("clip", x=x)
    if alpha > beta:
        raise CompileError(f"clip: alpha {alpha} is above beta {beta}, so that no value could lie between them.")
    return x


@clip.evaluates
def _(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    return np.minimum(np.maximum(x, alpha), beta)


threshold = OpKind("threshold")


@threshold.infers
def _(x: TensorType, alpha: float) -> TensorType:
    """At least alpha."""
    require_numbers("threshold", x=x)
    return x


@threshold.evaluates
def _(x: np.ndarray, alpha: float) -> np.ndarray:
    return np.maximum(x, alpha)
