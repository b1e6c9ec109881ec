"""Casts, fills, ranges and one-hot vectors, against coremltools."""

import numpy as np
import pytest
from second_opinion import assert_agrees_with_coremltools, ours

from torchane.errors import CompileError
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import literal
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, FP32, INT32, TensorType

X = np.array([[-1.75, 0, 1.5], [2.5, 300, -7]], np.float32)
N = np.array([[0, 2], [3, 1]], np.int32)
CASES = [
    *(("cast", {"x": X, "dtype": dtype}) for dtype in ("int32", "fp16", "fp32", "bool", "int16")),
    *(("cast", {"x": N, "dtype": dtype}) for dtype in ("fp16", "bool", "uint8")),
    ("cast", {"x": X > 0, "dtype": "fp32"}),
    ("fill", {"shape": (2, 3), "value": np.float32(1.5)}),
    ("fill", {"shape": (2,)}),
    ("fill_like", {"ref_tensor": X, "value": np.int32(4)}),
    ("range_1d", {"start": np.int32(2), "end": np.int32(9), "step": np.int32(3)}),
    ("range_1d", {"start": np.float32(5), "end": np.float32(-1), "step": np.float32(-1.5)}),
]


@pytest.mark.parametrize(("op", "args"), CASES)
def test_agrees_with_coremltools(op, args):
    assert_agrees_with_coremltools(op, args)


@pytest.mark.parametrize("axis", [-1, 0, 1, 2])
def test_one_hot(axis):
    """coremltools has no value rule for it; types are compared by its op tests (test_apple_suite.py)."""
    types, (value,) = ours("one_hot", indices=N, one_hot_vector_size=4, axis=axis)
    wanted = np.moveaxis(np.eye(4, dtype=np.int32)[N], -1, axis)
    assert types == (TensorType(INT32, wanted.shape),)
    np.testing.assert_array_equal(value, wanted)


def test_an_index_outside_is_off_everywhere():
    args = {"on_value": literal(2.0, FP16), "off_value": literal(-1.0, FP16)}
    types, (value,) = ours("one_hot", indices=np.array([-1, 1, 5], np.int32), one_hot_vector_size=2, **args)
    assert types[0].dtype == FP16
    assert value.tolist() == [[-1, -1], [-1, 2], [-1, -1]]


def test_a_range_known_only_at_run_time_has_an_unknown_length():
    builder = Builder()
    end = builder.input("end", (), INT32)
    result = builder.range_1d(start=literal(0), end=end, step=literal(2), name="y")
    assert result.type == TensorType(INT32, (None,))
    assert evaluate(builder.program(result), {"end": np.array(5)})["y"].tolist() == [0, 2, 4]


def test_a_cast_to_fp16_rounds_once_to_nearest_even():
    _, (value,) = ours("cast", x=np.array([2049, 2051, 1e6], np.float32), dtype="fp16")
    assert value.tolist() == [2048, 2052, np.inf]


def test_an_ideal_cast_rounds_nothing():
    builder = Builder()
    program = builder.program(builder.cast(x=builder.input("x", (1,), FP32), dtype="fp16", name="y"))
    assert evaluate(program, {"x": np.array([1 / 3])}, arithmetic="ideal")["y"] == 1 / 3


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("cast", {"x": TensorType(FP16), "dtype": "half"}, "cast: dtype is 'half', not an element type.*Known: fp16"),
        ("cast", {"x": TensorType(FP16), "dtype": "string"}, "cast: dtype is 'string'"),
        ("fill", {"shape": (2, -1)}, "fill: shape"),
        ("fill", {"shape": (2,), "value": TensorType(FP32, (3,))}, "fill: value is"),
        ("range_1d", {"start": literal(0), "end": literal(3), "step": literal(0)}, "range_1d: step is 0"),
        (
            "range_1d",
            {"start": literal(0), "end": TensorType(FP16), "step": literal(1)},
            "range_1d: .*one element type",
        ),
        (
            "one_hot",
            {"indices": TensorType(FP16), "one_hot_vector_size": 3},
            "one_hot: indices is .*must hold integers",
        ),
        ("one_hot", {"indices": TensorType(INT32), "one_hot_vector_size": -1}, "one_hot: one_hot_vector_size -1"),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
