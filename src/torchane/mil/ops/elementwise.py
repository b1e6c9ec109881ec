"""Element-wise ops of two operands or three, which broadcast as NumPy does.

Source: coremltools, mil/ops/defs/iOS15/elementwise_binary.py, control_flow.py (select).
"""

from collections.abc import Callable

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import broadcast, require_numbers, same_dtype
from torchane.mil.types import BOOL, TensorType


def _binary(name: str, function: Callable[..., np.ndarray]) -> OpKind:
    kind = OpKind(name, operands=("x", "y"))

    @kind.infers
    def _(x: TensorType, y: TensorType) -> TensorType:
        same_dtype(name, x=x, y=y)
        require_numbers(name, x=x, y=y)
        return TensorType(x.dtype, broadcast(name, x, y))

    @kind.evaluates
    def _(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return function(x, y)

    return kind


def _compare(name: str, function: Callable[..., np.ndarray]) -> OpKind:
    kind = OpKind(name, operands=("x", "y"))

    @kind.infers
    def _(x: TensorType, y: TensorType) -> TensorType:
        same_dtype(name, x=x, y=y)
        require_numbers(name, x=x, y=y)
        return TensorType(BOOL, broadcast(name, x, y))

    @kind.evaluates
    def _(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return function(x, y)

    return kind


def _logical(name: str, function: Callable[..., np.ndarray]) -> OpKind:
    kind = OpKind(name, operands=("x", "y"))

    @kind.infers
    def _(x: TensorType, y: TensorType) -> TensorType:
        for operand, type_ in (("x", x), ("y", y)):
            if type_.dtype != BOOL:
                raise CompileError(f"{name}: {operand} is {type_} and must hold bools.")
        return TensorType(BOOL, broadcast(name, x, y))

    @kind.evaluates
    def _(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return function(x, y)

    return kind


def _power(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Integers go through floats: NumPy refuses 2 ** -1 in integers, MIL truncates its 0.5 to 0."""
    if np.issubdtype(np.result_type(x, y), np.integer):
        return np.trunc(np.power(x.astype(np.float64), y))
    return np.power(x, y)


def _divide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Integers divide towards zero: the quotient is stored in the integer type of the operands."""
    quotient = np.true_divide(x, y)
    return np.trunc(quotient) if np.issubdtype(np.result_type(x, y), np.integer) else quotient


add = _binary("add", np.add)
sub = _binary("sub", np.subtract)
mul = _binary("mul", np.multiply)
real_div = _binary("real_div", _divide)
floor_div = _binary("floor_div", np.floor_divide)
mod = _binary("mod", np.mod)
maximum = _binary("maximum", np.maximum)
minimum = _binary("minimum", np.minimum)
pow = _binary("pow", _power)

equal = _compare("equal", np.equal)
not_equal = _compare("not_equal", np.not_equal)
greater = _compare("greater", np.greater)
greater_equal = _compare("greater_equal", np.greater_equal)
less = _compare("less", np.less)
less_equal = _compare("less_equal", np.less_equal)

logical_and = _logical("logical_and", np.logical_and)
logical_or = _logical("logical_or", np.logical_or)
logical_xor = _logical("logical_xor", np.logical_xor)

select = OpKind("select", operands=("cond", "a", "b"))


@select.infers
def _(cond: TensorType, a: TensorType, b: TensorType) -> TensorType:
    """a where cond holds, else b; all three broadcast."""
    if cond.dtype != BOOL:
        raise CompileError(f"select: cond is {cond} and must hold bools.")
    same_dtype("select", a=a, b=b)
    return TensorType(a.dtype, broadcast("select", cond, a, b))


@select.evaluates
def _(cond: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(cond, a, b)
