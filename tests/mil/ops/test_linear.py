"""matmul, linear and einsum, against coremltools, and what they cost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from second_opinion import assert_agrees_with_coremltools, ours

from torchane.errors import CompileError
from torchane.mil.ir import literal
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, FP32, INT32, TensorType

RNG = np.random.default_rng(1)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


CASES = [
    ("matmul", {"x": normal(2, 3), "y": normal(3, 4)}),
    ("matmul", {"x": normal(2, 1, 3, 2), "y": normal(5, 3, 4), "transpose_x": True}),
    ("matmul", {"x": normal(2, 3), "y": normal(6, 4, 3), "transpose_y": True}),
    ("matmul", {"x": normal(3), "y": normal(3, 4)}),
    ("matmul", {"x": np.arange(6, dtype=np.int32).reshape(2, 3), "y": np.arange(6, dtype=np.int32).reshape(3, 2)}),
    ("linear", {"x": normal(2, 5, 3), "weight": normal(4, 3)}),
    ("linear", {"x": normal(2, 5, 3), "weight": normal(4, 3), "bias": normal(4)}),
    ("einsum", {"values": (normal(2, 3, 4, 5), normal(2, 5, 4, 6)), "equation": "nchw,nwhu->nchu"}),
    ("einsum", {"values": (normal(2, 3, 1, 5), normal(1, 5, 4, 6)), "equation": "nchw,nwhu->nchu"}),
    ("einsum", {"values": (normal(3, 4, 5), normal(5, 4, 6)), "equation": "chw,whr->chr"}),
]


@pytest.mark.parametrize(("op", "args"), CASES)
def test_agrees_with_coremltools(op, args):
    assert_agrees_with_coremltools(op, args, rtol=1e-5)


def test_a_vector_meets_every_matrix_of_a_batch():
    """As in NumPy. coremltools' type rule drops the batch axis here, its value keeps it."""
    x, y = normal(3), normal(5, 3, 4)
    types, (value,) = ours("matmul", x=x, y=y)
    assert types == (TensorType(FP32, (5, 4)),)
    np.testing.assert_allclose(value, x.astype(np.float64) @ y, 1e-6)


def test_a_product_is_summed_wide_and_rounded_once():
    x = np.full((1, 2048), 1 + 2.0**-10, np.float16)
    _, (value,) = ours("matmul", x=x, y=np.ones((2048, 1), np.float16))
    assert value == np.float16(2048 * (1 + 2.0**-10))


def test_a_constant_of_another_type_takes_the_type_of_the_other_operand():
    types, _ = ours("matmul", x=normal(2, 3), y=literal(np.ones((3, 4), np.float16)))
    assert types == (TensorType(FP32, (2, 4)),)


sizes = st.one_of(st.none(), st.integers(1, 5))


@given(sizes, sizes, sizes, st.booleans(), st.booleans())
def test_unknown_sizes_flow_through_matmul(m, k, n, transpose_x, transpose_y):
    x = TensorType(FP16, (k, m) if transpose_x else (m, k))
    y = TensorType(FP16, (n, k) if transpose_y else (k, n))
    args = {"x": x, "y": y, "transpose_x": transpose_x, "transpose_y": transpose_y}
    assert KINDS["matmul"].infer(args) == (TensorType(FP16, (m, n)),)


@pytest.mark.parametrize(
    ("op", "args", "macs"),
    [
        ("matmul", {"x": TensorType(FP16, (2, 3, 4)), "y": TensorType(FP16, (4, 5))}, 2 * 3 * 5 * 4),
        ("linear", {"x": TensorType(FP16, (7, 3)), "weight": TensorType(FP16, (4, 3))}, 7 * 4 * 3),
        (
            "einsum",
            {"values": (TensorType(FP16, (3, 4, 5)), TensorType(FP16, (5, 4, 6))), "equation": "chw,whr->chr"},
            360,
        ),
        ("add", {"x": TensorType(FP16, (7,)), "y": TensorType(FP16, (7,))}, 0),
    ],
)
def test_multiply_adds(op, args, macs):
    assert KINDS[op].macs(args) == macs


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        (
            "matmul",
            {"x": TensorType(FP16, (2, 3)), "y": TensorType(FP16, (4, 5))},
            "matmul: the inner sizes are 3 and 4",
        ),
        ("matmul", {"x": TensorType(FP16), "y": TensorType(FP16, (4, 5))}, "matmul: .*y needs two axes"),
        ("matmul", {"x": TensorType(FP16, (2, 3)), "y": TensorType(INT32, (3, 5))}, "matmul: .*one element type"),
        (
            "linear",
            {"x": TensorType(FP16, (2, 3)), "weight": TensorType(FP16, (4, 5))},
            "linear: the inner sizes differ",
        ),
        (
            "linear",
            {"x": TensorType(FP16, (2, 3)), "weight": TensorType(FP16, (4, 3)), "bias": TensorType(FP16, (3,))},
            r"linear: bias is tensor<fp16, \[3\]> and must have the shape \[4\]",
        ),
        (
            "einsum",
            {"values": (TensorType(FP16, (2,)),), "equation": "i"},
            "einsum: the equation 'i' is not of the form",
        ),
        ("einsum", {"values": (TensorType(FP16, (2,)),), "equation": "ij->i"}, "einsum: .*does not fit the operands"),
        (
            "einsum",
            {"values": (TensorType(FP16, (2,)), TensorType(FP16, (3,))), "equation": "i,i->i"},
            "einsum: .*gives i the sizes 2 and 3",
        ),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
