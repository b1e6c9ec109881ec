"""Constant expressions: weights kept compressed in a file and unpacked when the program is loaded.

Two spellings: argument form (iOS18), and attribute form, in which every argument stands in the brackets behind
the op (iOS16). Where the two also differ in their arguments (lut, sparse), the arguments tell them apart.
Source: coremltools, mil/ops/defs/iOS16/constexpr_ops.py, iOS18/compression.py and optimize/_utils.py.
"""

import math

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.quantize import along
from torchane.mil.ops.support import Sizes, positive_axis, replaced, require_choice, require_rank, require_shape
from torchane.mil.types import FP32, DType, TensorType

constexpr_affine_dequantize = OpKind("constexpr_affine_dequantize", operands=("quantized_data", "zero_point", "scale"))


@constexpr_affine_dequantize.infers
def _(quantized_data: TensorType, zero_point: TensorType, scale: TensorType, axis: int) -> TensorType:
    """(quantized_data - zero_point) * scale, in the type of scale; each a scalar or one for each entry of axis."""
    size = quantized_data.shape[positive_axis("constexpr_affine_dequantize", axis, quantized_data.rank)]
    for name, values in (("zero_point", zero_point), ("scale", scale)):
        if values.rank:
            require_shape("constexpr_affine_dequantize", (size,), **{name: values})
    return TensorType(scale.dtype, quantized_data.shape)


@constexpr_affine_dequantize.evaluates
def _(quantized_data: np.ndarray, zero_point: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    shift = along(zero_point.astype(np.float64), axis, quantized_data.ndim)
    return (quantized_data - shift) * along(scale, axis, quantized_data.ndim)


constexpr_cast = OpKind("constexpr_cast", operands=("source_val",))


@constexpr_cast.infers
def _(source_val: TensorType, output_dtype: str) -> TensorType:
    """fp16 kept in the file, fp32 in the program."""
    require_choice("constexpr_cast", "output_dtype", output_dtype, ("fp32",))
    return TensorType(FP32, source_val.shape)


@constexpr_cast.evaluates
def _(source_val: np.ndarray, output_dtype: str) -> np.ndarray:
    return source_val


constexpr_lut_to_dense = OpKind("constexpr_lut_to_dense", operands=("indices", "lut"))


@constexpr_lut_to_dense.infers
def _(
    indices: TensorType, lut: TensorType, shape: tuple[int, ...] | None = None, vector_axis: int | None = None
) -> TensorType:
    """Entries of a table instead of indices.

    iOS16, with shape: indices are bytes that hold indices of log2(len(lut)) bits, the lowest first; lut is a vector.
    iOS18: lut (*G, P, V) has a table for each block of indices, G dividing their shape; a table has P = 2^bits
    entries, each V values that lie along vector_axis.
    """
    if shape is None:
        return TensorType(lut.dtype, _dense_shape(indices.shape, indices.dtype, lut, vector_axis))
    require_rank("constexpr_lut_to_dense", (1,), lut=lut, indices=indices)
    if lut.shape[0] not in (2, 4, 16, 64, 256):
        raise CompileError(f"constexpr_lut_to_dense: lut is {lut}; a table has 2, 4, 16, 64 or 256 entries.")
    _require_sizes("constexpr_lut_to_dense", shape)
    bits = math.prod(shape) * (lut.shape[0].bit_length() - 1)
    require_shape("constexpr_lut_to_dense", ((bits + 7) // 8,), indices=indices)
    return TensorType(lut.dtype, shape)


def _require_sizes(kind: str, shape: tuple[int, ...]) -> None:
    if min(shape, default=1) < 0:
        raise CompileError(f"{kind}: shape is {shape}; a size is 0 or more.")


def _dense_shape(shape: Sizes, dtype: DType, lut: TensorType, vector_axis: int | None) -> Sizes:
    """The shape of what indices of that shape stand for. Raises CompileError where the tables do not fit."""
    name = "constexpr_lut_to_dense"
    if None in lut.shape or None in shape or lut.rank != len(shape) + 2:
        raise CompileError(f"{name}: lut is {lut} for indices of shape {shape}; it has two axes more than they.")
    if any(groups < 1 or size % groups for size, groups in zip(shape, lut.shape)):
        raise CompileError(f"{name}: lut {lut} does not part indices of shape {shape} in equal blocks.")
    if lut.shape[-2] != 1 << dtype.bits:
        raise CompileError(
            f"{name}: lut {lut} has tables of {lut.shape[-2]} entries and the indices are {dtype.mil_name}."
        )
    if lut.shape[-1] == 1:
        return shape
    if vector_axis is None:
        raise CompileError(f"{name}: lut {lut} holds vectors and vector_axis, along which they lie, is missing.")
    axis = positive_axis(name, vector_axis, len(shape))
    return replaced(shape, axis, shape[axis] * lut.shape[-1])


def _unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Whole numbers of `bits` bits each, the lowest bit first, out of bytes."""
    stream = np.unpackbits(packed.astype(np.uint8), bitorder="little")[: bits * count]
    return stream.reshape(count, bits) @ (1 << np.arange(bits))


@constexpr_lut_to_dense.evaluates
def _(
    indices: np.ndarray, lut: np.ndarray, shape: tuple[int, ...] | None = None, vector_axis: int | None = None
) -> np.ndarray:
    if shape is None:
        return _looked_up(indices, lut, vector_axis)
    return lut[_unpacked(indices, len(lut).bit_length() - 1, math.prod(shape))].reshape(shape)


def _looked_up(indices: np.ndarray, lut: np.ndarray, vector_axis: int | None) -> np.ndarray:
    """Each index in the table of its block, its vector laid along vector_axis."""
    tables = lut
    for axis, (size, groups) in enumerate(zip(indices.shape, lut.shape)):
        tables = np.repeat(tables, size // groups, axis)
    vectors = np.take_along_axis(tables, indices.astype(np.int64)[..., None, None], axis=-2)[..., 0, :]
    if lut.shape[-1] == 1:
        return vectors[..., 0]
    axis = vector_axis % indices.ndim
    shape = [size * lut.shape[-1] if other == axis else size for other, size in enumerate(indices.shape)]
    return np.moveaxis(vectors, -1, axis + 1).reshape(shape)


constexpr_sparse_to_dense = OpKind("constexpr_sparse_to_dense", operands=("nonzero_data", "mask"))


@constexpr_sparse_to_dense.infers
def _(nonzero_data: TensorType, mask: TensorType, shape: tuple[int, ...] | None = None) -> TensorType:
    """The values in their places, in row-major order, and zeros elsewhere.

    iOS16, with shape: mask is bytes, a bit for each place, the lowest first. iOS18: mask is a tensor of uint1.
    """
    require_rank("constexpr_sparse_to_dense", (1,), nonzero_data=nonzero_data)
    if shape is None:
        return TensorType(nonzero_data.dtype, mask.shape)
    _require_sizes("constexpr_sparse_to_dense", shape)
    require_shape("constexpr_sparse_to_dense", ((math.prod(shape) + 7) // 8,), mask=mask)
    return TensorType(nonzero_data.dtype, shape)


@constexpr_sparse_to_dense.evaluates
def _(nonzero_data: np.ndarray, mask: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
    return _spread(nonzero_data, mask if shape is None else _unpacked(mask, 1, math.prod(shape)).reshape(shape))


def _spread(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values where the mask is set. Raises CompileError if it is set elsewhere too, or not often enough."""
    places = mask != 0
    if places.sum() != values.size:
        raise CompileError(f"constexpr: the mask marks {places.sum()} places and there are {values.size} values.")
    dense = np.zeros(mask.shape, values.dtype)
    dense[places] = values
    return dense


constexpr_blockwise_shift_scale = OpKind("constexpr_blockwise_shift_scale", operands=("data", "scale", "offset"))


@constexpr_blockwise_shift_scale.infers
def _(data: TensorType, scale: TensorType, offset: TensorType | None = None) -> TensorType:
    """(data - offset) * scale, in the type of scale; both have an entry for each block of data."""
    _require_blocks("constexpr_blockwise_shift_scale", data.shape, data.dtype, scale, offset)
    return TensorType(scale.dtype, data.shape)


def _require_blocks(kind: str, shape: Sizes, dtype: DType, scale: TensorType, offset: TensorType | None) -> None:
    if (
        None in shape
        or None in scale.shape
        or not scale.rank == len(shape) >= 1
        or any(count < 1 or size % count for size, count in zip(shape, scale.shape))
    ):
        raise CompileError(f"{kind}: scale {scale} does not part data of shape {shape} in equal blocks.")
    require_shape(kind, scale.shape, offset=offset)
    if offset is not None and not offset.dtype.is_float and offset.dtype != dtype:
        raise CompileError(
            f"{kind}: offset is {offset} and the data {dtype.mil_name}; it holds floats or what the data holds."
        )


@constexpr_blockwise_shift_scale.evaluates
def _(data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None) -> np.ndarray:
    return _shifted_scaled(data, scale, offset)


def _shifted_scaled(data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None) -> np.ndarray:
    shift = np.zeros(scale.shape) if offset is None else offset.astype(np.float64)
    for axis, (size, count) in enumerate(zip(data.shape, scale.shape)):
        scale, shift = np.repeat(scale, size // count, axis), np.repeat(shift, size // count, axis)
    return (data - shift) * scale


constexpr_lut_to_sparse = OpKind("constexpr_lut_to_sparse", operands=("indices_mask", "indices_nonzero_data", "lut"))


@constexpr_lut_to_sparse.infers
def _(
    indices_mask: TensorType, indices_nonzero_data: TensorType, lut: TensorType, vector_axis: int | None = None
) -> tuple[TensorType, TensorType]:
    """The mask and the values of a sparse tensor whose values are kept as indices in tables."""
    require_rank("constexpr_lut_to_sparse", (1,), indices_nonzero_data=indices_nonzero_data)
    shape = _dense_shape(indices_mask.shape, indices_nonzero_data.dtype, lut, vector_axis)
    count = indices_nonzero_data.shape[0]
    values = None if count is None else count * lut.shape[-1]
    return TensorType(indices_mask.dtype, shape), TensorType(lut.dtype, (values,))


@constexpr_lut_to_sparse.evaluates
def _(
    indices_mask: np.ndarray, indices_nonzero_data: np.ndarray, lut: np.ndarray, vector_axis: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    dense = _looked_up(_spread(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask if lut.shape[-1] == 1 else np.repeat(indices_mask, lut.shape[-1], vector_axis)
    return mask, dense[mask != 0]


constexpr_sparse_blockwise_shift_scale = OpKind(
    "constexpr_sparse_blockwise_shift_scale", operands=("data_mask", "nonzero_data", "scale", "offset")
)


@constexpr_sparse_blockwise_shift_scale.infers
def _(
    data_mask: TensorType, nonzero_data: TensorType, scale: TensorType, offset: TensorType | None = None
) -> tuple[TensorType, TensorType]:
    """The mask and the values of a sparse tensor whose values are kept as integers with blockwise scales."""
    require_rank("constexpr_sparse_blockwise_shift_scale", (1,), nonzero_data=nonzero_data)
    _require_blocks("constexpr_sparse_blockwise_shift_scale", data_mask.shape, nonzero_data.dtype, scale, offset)
    return data_mask, TensorType(scale.dtype, nonzero_data.shape)


@constexpr_sparse_blockwise_shift_scale.evaluates
def _(
    data_mask: np.ndarray, nonzero_data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    dense = _shifted_scaled(_spread(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]
