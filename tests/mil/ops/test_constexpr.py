"""Compressed constants, against coremltools' own decompression."""

import warnings

import numpy as np
import pytest
from second_opinion import cml, ours, type_from

from torchane.errors import CompileError
from torchane.mil.build import inferred
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Function, Literal, Op, Program, Var, literal
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, FP32, DType, TensorType

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from coremltools.converters.mil.mil.ops.defs import iOS16, iOS18

RNG = np.random.default_rng(7)
Q = RNG.integers(-128, 128, (4, 6)).astype(np.int8)
SCALE = RNG.random((4,)).astype(np.float32)
LUT = RNG.normal(size=(2, 1, 4, 1)).astype(np.float32)
VECTORS = RNG.normal(size=(1, 3, 4, 2)).astype(np.float32)
INDICES = RNG.integers(0, 4, (4, 6)).astype(np.uint8)
MASK = (RNG.random((4, 6)) < 0.4).astype(np.uint8)
COUNT = int(MASK.sum())
CASES = [(name, "coremltools' decompress") for name in KINDS if name.startswith("constexpr_")]


def typed(value: np.ndarray, dtype: DType) -> Literal:
    return Literal(TensorType(dtype, value.shape), value)


@pytest.mark.parametrize("axis", [0, -2])
def test_affine(axis):
    point = np.array([1, -3, 0, 127], np.int8)
    _, (value,) = ours("constexpr_affine_dequantize", quantized_data=Q, zero_point=point, scale=SCALE, axis=axis)
    np.testing.assert_allclose(value, iOS16.constexpr_affine_dequantize.decompress(Q, point, SCALE, 0), 1e-6)


def test_affine_with_one_scale_for_all():
    args = {"quantized_data": Q, "zero_point": np.int8(5), "scale": np.float32(0.25), "axis": 0}
    types, (value,) = ours("constexpr_affine_dequantize", **args)
    assert types == (TensorType(FP32, (4, 6)),)
    np.testing.assert_array_equal(value, (Q.astype(np.float32) - 5) / 4)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_a_table_by_packed_indices(bits):
    shape, lut = (3, 5), RNG.normal(size=1 << bits).astype(np.float16)
    packed = RNG.integers(0, 256, (15 * bits + 7) // 8).astype(np.uint8)
    _, (value,) = ours("constexpr_lut_to_dense", indices=packed, lut=lut, shape=np.array(shape, np.uint32))
    np.testing.assert_array_equal(value, iOS16.constexpr_lut_to_dense.decompress(lut, packed, shape))


@pytest.mark.parametrize(("lut", "axis"), [(LUT, None), (VECTORS, 1), (VECTORS, 0), (VECTORS, -1)])
def test_tables_for_blocks_of_indices(lut, axis):
    args = {"vector_axis": axis} if axis is not None else {}
    types, (value,) = ours("constexpr_lut_to_dense", indices=typed(INDICES, DType.UINT2), lut=lut, **args)
    wanted = iOS18.constexpr_lut_to_dense.decompress(INDICES, lut, axis)
    assert types[0].shape == wanted.shape
    np.testing.assert_array_equal(value, wanted)


def test_sparse_with_a_mask_of_bytes():
    bits = np.packbits(MASK.ravel(), bitorder="little")
    values = RNG.normal(size=COUNT).astype(np.float16)
    _, (value,) = ours("constexpr_sparse_to_dense", nonzero_data=values, mask=bits, shape=(4, 6))
    np.testing.assert_array_equal(value, iOS16.constexpr_sparse_to_dense.decompress(values, bits, (4, 6)))


def test_sparse_with_a_mask_of_bits():
    values = RNG.normal(size=COUNT).astype(np.float16)
    types, (value,) = ours("constexpr_sparse_to_dense", nonzero_data=values, mask=typed(MASK, DType.UINT1))
    assert types == (TensorType(FP16, (4, 6)),)
    np.testing.assert_array_equal(value, iOS18.constexpr_sparse_to_dense.decompress(values, MASK))


@pytest.mark.parametrize("blocks", [(4, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("with_offset", [False, True])
def test_blockwise(blocks, with_offset):
    scale, offset = RNG.random(blocks).astype(np.float32), RNG.integers(-8, 8, blocks).astype(np.int8)
    args = {"offset": offset} if with_offset else {}
    _, (value,) = ours("constexpr_blockwise_shift_scale", data=Q, scale=scale, **args)
    wanted = iOS18.constexpr_blockwise_shift_scale.decompress(Q, scale, offset if with_offset else None)
    np.testing.assert_allclose(value, wanted, 1e-6)


@pytest.mark.parametrize(("lut", "axis"), [(LUT, None), (VECTORS, 1)])
def test_sparse_indices(lut, axis):
    values = RNG.integers(0, 4, COUNT).astype(np.uint8)
    args = {"vector_axis": axis} if axis is not None else {}
    types, both = ours(
        "constexpr_lut_to_sparse",
        indices_mask=typed(MASK, DType.UINT1),
        indices_nonzero_data=typed(values, DType.UINT2),
        lut=lut,
        **args,
    )
    wanted = iOS18.constexpr_lut_to_sparse.decompress(MASK, values, lut, axis)
    for type_, value, other in zip(types, both, wanted, strict=True):
        assert type_.shape == other.shape
        np.testing.assert_array_equal(value, other)


def test_sparse_blockwise():
    values, scale = RNG.integers(-8, 8, COUNT).astype(np.int8), RNG.random((4, 1)).astype(np.float32)
    mask = typed(MASK, DType.UINT1)
    _, both = ours("constexpr_sparse_blockwise_shift_scale", data_mask=mask, nonzero_data=values, scale=scale)
    wanted = iOS18.constexpr_sparse_blockwise_shift_scale.decompress(MASK, values, scale, None)
    for value, other in zip(both, wanted, strict=True):
        np.testing.assert_allclose(value, other, 1e-6)


def test_cast():
    x = RNG.normal(size=3).astype(np.float16)
    types, (value,) = ours("constexpr_cast", source_val=x, output_dtype="fp32")
    assert types == (TensorType(FP32, (3,)),)
    np.testing.assert_array_equal(value, x.astype(np.float32))


def test_arguments_may_stand_as_attributes():
    """The spelling of ios16: nothing between the parentheses, all in the brackets."""
    weight = Var("w", TensorType(FP16, (2,)))
    attrs = {
        "axis": literal(0),
        "name": literal("w"),
        "quantized_data": literal(np.array([1, 2], np.int8)),
        "scale": literal(0.5, FP16),
        "zero_point": literal(np.array(1, np.int8)),
    }
    op = Op(KINDS["constexpr_affine_dequantize"], {}, (weight,), attrs)
    assert inferred(op) == (weight.type,)
    assert evaluate(Program((Function("main", (), (op,), (weight,)),)), {})["w"].tolist() == [0, 0.5]


def test_coremltools_types_of_fewer_bits_arrive():
    assert type_from(cml.types.tensor(cml.types.uint4, (2,))) == TensorType(DType.UINT4, (2,))


U2, LUT4 = TensorType(DType.UINT2, (4, 6)), TensorType(FP16, (1, 1, 4, 1))


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("lut_to_dense", {"indices": U2, "lut": TensorType(FP16, (4,))}, "lut is .*two axes more"),
        ("lut_to_dense", {"indices": U2, "lut": TensorType(FP16, (3, 1, 4, 1))}, "does not part indices"),
        ("lut_to_dense", {"indices": U2, "lut": TensorType(FP16, (1, 1, 8, 1))}, "tables of 8 entries .* are uint2"),
        ("lut_to_dense", {"indices": U2, "lut": TensorType(FP16, (1, 1, 4, 2))}, "vector_axis, .*is missing"),
        (
            "lut_to_dense",
            {"indices": TensorType(DType.UINT8, (3,)), "lut": TensorType(FP16, (4,)), "shape": (4, 4)},
            r"indices is .*shape \[4\]",
        ),
        ("blockwise_shift_scale", {"data": U2, "scale": TensorType(FP16, (3, 1))}, "scale .* does not part data"),
        (
            "blockwise_shift_scale",
            {"data": U2, "scale": TensorType(FP16, (4, 1)), "offset": TensorType(DType.INT8, (4, 1))},
            "offset is .*what the data holds",
        ),
        ("cast", {"source_val": TensorType(FP16), "output_dtype": "fp16"}, "output_dtype is 'fp16'"),
        (
            "affine_dequantize",
            {"quantized_data": U2, "zero_point": TensorType(DType.UINT2), "scale": TensorType(FP16, (4,)), "axis": 1},
            r"scale is .*shape \[6\]",
        ),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=f"constexpr_.*{message}"):
        KINDS[f"constexpr_{op}"].infer(args)


def test_a_mask_and_its_values_must_match():
    with pytest.raises(CompileError, match="the mask marks 2 places and there are 1 values"):
        ours(
            "constexpr_sparse_to_dense",
            nonzero_data=np.ones(1, np.float16),
            mask=typed(np.ones(2, np.uint8), DType.UINT1),
        )
