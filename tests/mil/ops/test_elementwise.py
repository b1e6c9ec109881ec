"""Binary ops, comparisons, logic and select, against coremltools and NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from second_opinion import assert_agrees_with_coremltools, ours

from torchane.errors import CompileError
from torchane.mil.kinds import KINDS
from torchane.mil.ops.support import broadcast
from torchane.mil.types import BOOL, FP16, FP32, INT32, TensorType

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32)
Y = RNG.normal(size=(3, 1)).astype(np.float32)
I = RNG.integers(-9, 10, (2, 3)).astype(np.int32)
J = np.array([[3], [-2]], np.int32)
P, Q = RNG.random((2, 3)) < 0.5, RNG.random((2, 1)) < 0.5

ARITHMETIC = ["add", "sub", "mul", "real_div", "floor_div", "mod", "maximum", "minimum"]
COMPARISONS = ["equal", "not_equal", "greater", "greater_equal", "less", "less_equal"]
CASES = [
    *((op, {"x": X, "y": Y}) for op in ARITHMETIC + COMPARISONS),
    *((op, {"x": I, "y": J}) for op in ARITHMETIC + COMPARISONS if op != "real_div"),
    *((op, {"x": P, "y": Q}) for op in ("logical_and", "logical_or", "logical_xor")),
    ("pow", {"x": np.abs(X), "y": Y}),
    ("pow", {"x": I, "y": np.array(2, np.int32)}),
    ("select", {"cond": P, "a": I.astype(np.float32), "b": -I.astype(np.float32)}),
]


@pytest.mark.parametrize(("op", "args"), CASES)
def test_agrees_with_coremltools(op, args):
    assert_agrees_with_coremltools(op, args)


def test_select_broadcasts_its_condition_too():
    types, (value,) = ours("select", cond=Q, a=I, b=np.array(7, np.int32))
    assert types == (TensorType(INT32, (2, 3)),)
    np.testing.assert_array_equal(value, np.where(Q, I, 7))


def test_division_of_integers_truncates_towards_zero():
    _, (value,) = ours("real_div", x=np.array([7, -7], np.int32), y=np.array(2, np.int32))
    assert value.tolist() == [3, -3]


def test_a_negative_power_of_an_integer_truncates_towards_zero():
    _, (value,) = ours("pow", x=np.array([1, 2, -2], np.int32), y=np.array(-1, np.int32))
    assert value.tolist() == [1, 0, 0]


def test_a_quotient_is_rounded_once():
    x, y = np.float16(1), np.float16(3)
    _, (value,) = ours("real_div", x=np.array(x), y=np.array(y))
    assert value == np.float16(1 / 3)


def test_division_by_zero_gives_infinities_and_nan_without_a_warning():
    x = np.array([1, -1, 0], np.float16)
    _, (value,) = ours("real_div", x=x, y=np.zeros(3, np.float16))
    np.testing.assert_array_equal(value, np.array([np.inf, -np.inf, np.nan], np.float16))


@given(mutually_broadcastable_shapes(num_shapes=3, max_dims=4, max_side=3))
def test_broadcasting_follows_numpy(shapes):
    types = [TensorType(FP16, shape) for shape in shapes.input_shapes]
    assert broadcast("add", *types) == shapes.result_shape


@given(st.lists(st.sampled_from([None, 1, 2, 3]), max_size=4))
def test_an_unknown_size_meets_itself_and_one(shape):
    a = TensorType(FP32, tuple(shape))
    assert broadcast("add", a, a) == a.shape
    assert broadcast("add", a, TensorType(FP32, (1,) * len(shape))) == a.shape


def test_an_unknown_size_takes_a_known_one():
    assert broadcast("add", TensorType(FP16, (None, None)), TensorType(FP16, (1, 5))) == (None, 5)


@pytest.mark.parametrize(
    ("op", "types", "message"),
    [
        ("add", {"x": TensorType(FP16, (2,)), "y": TensorType(FP16, (3,))}, r"add: .*axis -1 has \[2, 3\]"),
        ("mul", {"x": TensorType(FP16), "y": TensorType(FP32)}, "mul: x is tensor<fp16, .*one element type. Cast"),
        ("less", {"x": TensorType(INT32), "y": TensorType(FP32)}, "less: .*one element type"),
        ("add", {"x": TensorType(BOOL), "y": TensorType(BOOL)}, "add: x is .*must hold numbers"),
        ("logical_or", {"x": TensorType(BOOL), "y": TensorType(FP16)}, "logical_or: y is .*must hold bools"),
        ("select", {"cond": TensorType(FP16), "a": TensorType(FP16), "b": TensorType(FP16)}, "select: cond is .*bools"),
        ("add", {"x": TensorType(FP16)}, "add: missing a required argument: 'y'.*add\\(x: TensorType"),
        ("add", {"x": 1.5, "y": TensorType(FP16)}, "add: x is a 1.5. Its signature is"),
    ],
)
def test_refuses_what_does_not_meet(op, types, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(types)
