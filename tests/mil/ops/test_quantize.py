"""Between floats and 8-bit integers, against coremltools."""

import numpy as np
import pytest
from second_opinion import assert_agrees_with_coremltools, ours

from torchane.errors import CompileError
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, FP32, DType, TensorType

X = np.linspace(-9, 9, 24).reshape(2, 3, 4).astype(np.float32)
SCALES = np.array([0.1, 0.05, 0.2], np.float32)
CASES = [
    ("quantize", {"input": X, "scale": np.float32(0.1), "output_dtype": "int8"}),
    ("quantize", {"input": X, "scale": np.float32(0.05), "zero_point": np.uint8(128), "output_dtype": "uint8"}),
    (
        "quantize",
        {"input": X, "scale": SCALES, "zero_point": np.array([1, -2, 3], np.int8), "axis": 1, "output_dtype": "int8"},
    ),
]


@pytest.mark.parametrize(("op", "args"), CASES)
def test_agrees_with_coremltools(op, args):
    assert_agrees_with_coremltools(op, args)


@pytest.mark.parametrize("axis", [1, -2])
def test_dequantize_undoes_quantize(axis):
    """coremltools does not fold it; its own tests of it run in test_apple_suite.py."""
    points = np.array([1, -2, 3], np.int8)
    _, (q,) = ours("quantize", input=X / 4, scale=SCALES, zero_point=points, axis=1, output_dtype="int8")
    types, (value,) = ours("dequantize", input=q, scale=SCALES, zero_point=points, axis=axis)
    assert types == (TensorType(FP32, X.shape),)
    assert np.abs(value - X / 4).max() <= SCALES.max() / 2 + 1e-6


I8 = TensorType(DType.INT8, (2, 3))


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("quantize", {"input": I8, "scale": TensorType(FP16), "output_dtype": "int8"}, "quantize: input .*floats"),
        (
            "quantize",
            {"input": TensorType(FP16, (2,)), "scale": TensorType(FP16), "output_dtype": "int4"},
            "quantize: output_dtype is 'int4'",
        ),
        (
            "quantize",
            {
                "input": TensorType(FP16, (2,)),
                "scale": TensorType(FP16),
                "zero_point": TensorType(DType.UINT8),
                "output_dtype": "int8",
            },
            "quantize: zero_point is .*must agree",
        ),
        ("dequantize", {"input": I8, "scale": TensorType(FP16, (3,))}, "dequantize: scale .* and axis is missing"),
        ("dequantize", {"input": I8, "scale": TensorType(FP16), "axis": 1}, "dequantize: axis is 1 .*scalar"),
        (
            "dequantize",
            {"input": I8, "scale": TensorType(FP16, (2,)), "axis": 1},
            r"dequantize: scale is .*shape \[3\]",
        ),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
