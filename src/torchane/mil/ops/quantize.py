"""Between floats and 8-bit integers at run time.

Source: coremltools, mil/ops/defs/iOS17/quantization_ops.py and optimize/_utils.py.
"""

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import positive_axis, require_choice, require_float, require_integer, require_shape
from torchane.mil.types import DTYPES, TensorType


def _require_scales(
    kind: str, input: TensorType, scale: TensorType, zero_point: TensorType | None, axis: int | None
) -> None:
    """One scale (and zero point) for all, or one for each entry of the axis."""
    if scale.rank == 0:
        if axis is not None:
            raise CompileError(f"{kind}: axis is {axis} and scale is {scale}; a scalar scale has no axis.")
        require_shape(kind, (), zero_point=zero_point)
        return
    if axis is None:
        raise CompileError(f"{kind}: scale is {scale} and axis is missing; it says which axis of {input} is scaled.")
    size = input.shape[positive_axis(kind, axis, input.rank)]
    require_shape(kind, (size,), scale=scale, zero_point=zero_point)


def along(values: np.ndarray, axis: int | None, rank: int) -> np.ndarray:
    """A vector laid along an axis of a tensor of that rank; a scalar as it is."""
    if values.ndim == 0 or axis is None:
        return values
    return values.reshape([-1 if other == axis % rank else 1 for other in range(rank)])


quantize = OpKind("quantize", operands=("input", "scale", "zero_point"))


@quantize.infers
def _(
    input: TensorType,
    scale: TensorType,
    output_dtype: str,
    zero_point: TensorType | None = None,
    axis: int | None = None,
) -> TensorType:
    """round(input / scale) + zero_point, halves to even, saturating."""
    require_float("quantize", input=input, scale=scale)
    require_choice("quantize", "output_dtype", output_dtype, ("int8", "uint8"))
    _require_scales("quantize", input, scale, zero_point, axis)
    if zero_point is not None and zero_point.dtype != DTYPES[output_dtype]:
        raise CompileError(f"quantize: zero_point is {zero_point} and output_dtype {output_dtype}; they must agree.")
    return TensorType(DTYPES[output_dtype], input.shape)


@quantize.evaluates
def _(
    input: np.ndarray,
    scale: np.ndarray,
    output_dtype: str,
    zero_point: np.ndarray | None = None,
    axis: int | None = None,
) -> np.ndarray:
    shift = np.zeros(()) if zero_point is None else zero_point.astype(np.float64)
    steps = np.round(input / along(scale, axis, input.ndim)) + along(shift, axis, input.ndim)
    limits = np.iinfo(DTYPES[output_dtype].numpy)
    return np.clip(steps, limits.min, limits.max).astype(limits.dtype)


dequantize = OpKind("dequantize", operands=("input", "scale", "zero_point"))


@dequantize.infers
def _(
    input: TensorType, scale: TensorType, zero_point: TensorType | None = None, axis: int | None = None
) -> TensorType:
    """(input - zero_point) * scale, in the type of scale."""
    require_integer("dequantize", input=input)
    require_float("dequantize", scale=scale)
    _require_scales("dequantize", input, scale, zero_point, axis)
    if zero_point is not None and zero_point.dtype != input.dtype:
        raise CompileError(f"dequantize: zero_point is {zero_point} and input {input}; they must have one type.")
    return TensorType(scale.dtype, input.shape)


@dequantize.evaluates
def _(
    input: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None = None, axis: int | None = None
) -> np.ndarray:
    shift = np.zeros(()) if zero_point is None else zero_point.astype(np.float64)
    return (input - along(shift, axis, input.ndim)) * along(scale, axis, input.ndim)
