"""Constants, casts, the op that only names a value, and ops that make tensors from a few numbers.

Source: coremltools, mil/ops/defs/iOS15/tensor_operation.py, elementwise_unary.py (cast), iOS16 (fill_like)
and iOS17 (more element types for cast).
"""

import math

import numpy as np

from torchane.errors import CompileError
from torchane.mil.ir import Literal
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import (
    known_length,
    positive_axis,
    require_integer,
    require_numbers,
    require_shape,
    same_dtype,
)
from torchane.mil.types import DTYPES, FP32, INT32, STRING, TensorType, Type

# const keeps its value in the attribute `val`: it has no arguments and no rules.
const = OpKind("const", operands=())

identity = OpKind("identity")


@identity.infers
def _(x: Type) -> Type:
    return x


@identity.evaluates
def _(x: object) -> tuple[object]:
    return (x,)


cast = OpKind("cast")


@cast.infers
def _(x: TensorType, dtype: str) -> TensorType:
    if dtype not in DTYPES or DTYPES[dtype] == STRING:
        known = ", ".join(name for name in DTYPES if name != "string")
        raise CompileError(f"cast: dtype is {dtype!r}, not an element type that holds numbers. Known: {known}.")
    return TensorType(DTYPES[dtype], x.shape)


@cast.evaluates
def _(x: np.ndarray, dtype: str) -> np.ndarray:
    """Towards zero from float to integer, to 0 or 1 for bool. Towards a float nothing is rounded here: who
    stores the result rounds, once."""
    to = DTYPES[dtype]
    if to.is_float:
        return x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float64)
    return x.astype(to.numpy)


_SCALAR, _ZERO = TensorType(FP32), np.zeros(())

fill = OpKind("fill", operands=("value",), dynamic=("shape",))


@fill.infers
def _(shape: tuple[int, ...] | TensorType, value: TensorType = _SCALAR) -> TensorType:
    """`value` (0.0 in fp32 if left out) everywhere."""
    require_shape("fill", (), value=value)
    if isinstance(shape, TensorType):
        return TensorType(value.dtype, (None,) * known_length("fill", "shape", shape))
    if min(shape, default=0) < 0:
        raise CompileError(f"fill: shape {shape}; a size is 0 or more.")
    return TensorType(value.dtype, shape)


@fill.evaluates
def _(shape: tuple[int, ...], value: np.ndarray = _ZERO) -> np.ndarray:
    return np.full(shape, value)


fill_like = OpKind("fill_like", operands=("ref_tensor", "value"))


@fill_like.infers
def _(ref_tensor: TensorType, value: TensorType = _SCALAR) -> TensorType:
    """`value` (0.0 in fp32 if left out) in the shape of another tensor."""
    require_shape("fill_like", (), value=value)
    return TensorType(value.dtype, ref_tensor.shape)


@fill_like.evaluates
def _(ref_tensor: np.ndarray, value: np.ndarray = _ZERO) -> np.ndarray:
    return np.full(ref_tensor.shape, value)


range_1d = OpKind("range_1d", operands=("end", "start", "step"), dynamic=("end", "start", "step"))


@range_1d.infers
def _(end: TensorType | Literal, start: TensorType | Literal, step: TensorType | Literal) -> TensorType:
    """start, start + step, ... up to end and without it; its length is known if all three are constants."""
    given = {"end": end, "start": start, "step": step}
    types = {name: value.type if isinstance(value, Literal) else value for name, value in given.items()}
    same_dtype("range_1d", **types)
    require_numbers("range_1d", **types)
    require_shape("range_1d", (), **types)
    if not all(isinstance(value, Literal) for value in given.values()):
        return TensorType(types["end"].dtype, (None,))
    first, last, by = start.python(), end.python(), step.python()
    if by == 0:
        raise CompileError(f"range_1d: step is 0, from {first} to {last}.")
    return TensorType(types["end"].dtype, (max(0, math.ceil((last - first) / by)),))


@range_1d.evaluates
def _(end: np.ndarray, start: np.ndarray, step: np.ndarray) -> np.ndarray:
    return start + step * np.arange(max(0, math.ceil((end - start) / step)), dtype=start.dtype)


_INTEGER, _ON, _OFF = TensorType(INT32), np.array(1, np.int32), np.array(0, np.int32)

one_hot = OpKind("one_hot", operands=("indices", "on_value", "off_value"), dynamic=("one_hot_vector_size",))


@one_hot.infers
def _(
    indices: TensorType,
    one_hot_vector_size: int | TensorType,
    axis: int = -1,
    on_value: TensorType = _INTEGER,
    off_value: TensorType = _INTEGER,
) -> TensorType:
    """A new axis (counted in the result) with on_value (1) at the index and off_value (0) elsewhere; an index
    outside has off_value everywhere."""
    require_integer("one_hot", indices=indices)
    same_dtype("one_hot", on_value=on_value, off_value=off_value)
    require_shape("one_hot", (), on_value=on_value, off_value=off_value)
    axis = positive_axis("one_hot", axis, indices.rank + 1)
    size = None if isinstance(one_hot_vector_size, TensorType) else one_hot_vector_size
    if size is not None and size < 0:
        raise CompileError(f"one_hot: one_hot_vector_size {size} for indices {indices}; it is 0 or more.")
    return TensorType(on_value.dtype, (*indices.shape[:axis], size, *indices.shape[axis:]))


@one_hot.evaluates
def _(
    indices: np.ndarray,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: np.ndarray = _ON,
    off_value: np.ndarray = _OFF,
) -> np.ndarray:
    at = np.expand_dims(indices, axis)
    along = np.arange(one_hot_vector_size).reshape([-1 if other == axis % at.ndim else 1 for other in range(at.ndim)])
    return np.where(at == along, on_value, off_value)
