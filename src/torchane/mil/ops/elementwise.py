"""Element-wise ops: one result per element, operands broadcast as NumPy does."""

from collections.abc import Callable

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.types import BOOL, TensorType


def broadcast(kind: str, *types: TensorType) -> tuple[int | None, ...]:
    """The common shape of operands. Sizes of 1 stretch; an unknown size meets anything."""
    rank = max(type_.rank for type_ in types)
    shape: list[int | None] = []
    for axis in range(-rank, 0):
        sizes = [type_.shape[axis] for type_ in types if type_.rank >= -axis]
        known = {size for size in sizes if size not in (1, None)}
        if len(known) > 1:
            shown = " and ".join(map(str, types))
            raise CompileError(f"{kind}: the shapes of {shown} do not broadcast: axis {axis} has {sorted(known)}.")
        shape.append(known.pop() if known else (None if None in sizes else 1))
    return tuple(shape)


def _binary(name: str, function: Callable[..., np.ndarray]) -> OpKind:
    kind = OpKind(name, operands=("x", "y"))

    @kind.infers
    def _(x: TensorType, y: TensorType) -> TensorType:
        if x.dtype != y.dtype:
            raise CompileError(f"{name}: x is {x} and y is {y}; both must have one element type. Cast one of them.")
        return TensorType(x.dtype, broadcast(name, x, y))

    @kind.evaluates
    def _(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return function(x, y)

    return kind


def _compare(name: str, function: Callable[..., np.ndarray]) -> OpKind:
    kind = OpKind(name, operands=("x", "y"))

    @kind.infers
    def _(x: TensorType, y: TensorType) -> TensorType:
        return TensorType(BOOL, broadcast(name, x, y))

    kind.evaluates(lambda x, y: function(x, y))
    return kind


def _unary(name: str, function: Callable[[np.ndarray], np.ndarray]) -> OpKind:
    kind = OpKind(name)

    @kind.infers
    def _(x: TensorType) -> TensorType:
        return x

    @kind.evaluates
    def _(x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return function(x)

    return kind


add = _binary("add", np.add)
sub = _binary("sub", np.subtract)
mul = _binary("mul", np.multiply)
real_div = _binary("real_div", np.true_divide)
maximum = _binary("maximum", np.maximum)
minimum = _binary("minimum", np.minimum)
pow = _binary("pow", np.power)

equal = _compare("equal", np.equal)
not_equal = _compare("not_equal", np.not_equal)
greater = _compare("greater", np.greater)
greater_equal = _compare("greater_equal", np.greater_equal)
less = _compare("less", np.less)
less_equal = _compare("less_equal", np.less_equal)

relu = _unary("relu", lambda x: np.maximum(x, 0))
sigmoid = _unary("sigmoid", lambda x: 1 / (1 + np.exp(-x)))
silu = _unary("silu", lambda x: x / (1 + np.exp(-x)))
tanh = _unary("tanh", np.tanh)
exp = _unary("exp", np.exp)
sqrt = _unary("sqrt", np.sqrt)
abs = _unary("abs", np.abs)
square = _unary("square", np.square)
sin = _unary("sin", np.sin)
cos = _unary("cos", np.cos)

select = OpKind("select", operands=("cond", "a", "b"))


@select.infers
def _(cond: TensorType, a: TensorType, b: TensorType) -> TensorType:
    return TensorType(a.dtype, broadcast("select", cond, a, b))


@select.evaluates
def _(cond: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(cond, a, b)
