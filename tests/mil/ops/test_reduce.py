"""Reductions, against coremltools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from second_opinion import assert_agrees_with_coremltools, ours

from torchane.errors import CompileError
from torchane.mil.kinds import KINDS
from torchane.mil.types import BOOL, FP16, TensorType

X = np.random.default_rng(2).normal(size=(2, 3, 4)).astype(np.float32)
I = np.random.default_rng(3).integers(-5, 6, (2, 3, 4)).astype(np.int32)
OPS = ["reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "reduce_l1_norm", "reduce_l2_norm", "reduce_sum_square", "reduce_log_sum_exp"]  # fmt: skip
CASES = [
    *((op, {"x": X, "axes": (-1,), "keep_dims": True}) for op in OPS),
    *((op, {"x": X, "axes": (0, 2)}) for op in OPS),
    *((op, {"x": I, "axes": (1,)}) for op in ("reduce_sum", "reduce_max", "reduce_prod")),
    ("reduce_log_sum", {"x": np.abs(X), "axes": (1,)}),
    *((op, {"x": x, "axis": axis}) for op in ("reduce_argmax", "reduce_argmin") for x in (X, I) for axis in (0, -1)),
    ("reduce_argmax", {"x": X, "axis": 1, "keep_dims": True, "output_dtype": "uint16"}),
]


@pytest.mark.parametrize(("op", "args"), CASES)
def test_agrees_with_coremltools(op, args):
    assert_agrees_with_coremltools(op, args, rtol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_all_axes_go_if_none_are_named(op):
    types, (value,) = ours(op, x=X)
    assert types[0].shape == value.shape == ()


def test_a_mean_of_integers_is_truncated():
    _, (value,) = ours("reduce_mean", x=np.array([1, 2], np.int32))
    assert value == 1


def test_log_sum_exp_of_large_numbers_and_of_infinities():
    x = np.array([[60000, 60000], [-np.inf, -np.inf], [np.inf, 0]], np.float16)
    _, (value,) = ours("reduce_log_sum_exp", x=x, axes=(1,))
    np.testing.assert_array_equal(value, np.array([60000, -np.inf, np.inf], np.float16))


def test_the_first_of_equal_entries_is_the_largest():
    assert ours("reduce_argmax", x=np.array([1, 2, 2], np.float16))[1][0] == 1


@given(st.lists(st.sampled_from([None, 2, 3]), min_size=1, max_size=4), st.data())
def test_unknown_sizes_stay_where_they_are_not_reduced(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    (kept,) = KINDS["reduce_max"].infer({"x": TensorType(FP16, tuple(shape)), "axes": (axis,), "keep_dims": True})
    (gone,) = KINDS["reduce_max"].infer({"x": TensorType(FP16, tuple(shape)), "axes": (axis,)})
    axis %= len(shape)
    assert kept.shape == (*shape[:axis], 1, *shape[axis + 1 :])
    assert gone.shape == (*shape[:axis], *shape[axis + 1 :])


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("reduce_sum", {"x": TensorType(FP16, (2,)), "axes": (1,)}, "reduce_sum: axes hold 1 .*rank 1.*from -1 to 0"),
        ("reduce_sum", {"x": TensorType(FP16, (2, 2)), "axes": (1, -1)}, "reduce_sum: axes .*twice"),
        ("reduce_max", {"x": TensorType(BOOL, (2,))}, "reduce_max: x is .*must hold numbers"),
        ("reduce_argmax", {"x": TensorType(FP16, (2,)), "axis": 3}, "reduce_argmax: axis 3"),
        ("reduce_argmin", {"x": TensorType(FP16, (2,)), "output_dtype": "fp16"}, "reduce_argmin: output_dtype"),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
