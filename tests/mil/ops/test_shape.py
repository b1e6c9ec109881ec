"""Ops that change shapes, against coremltools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from second_opinion import assert_agrees_with_coremltools, ours

from torchane.errors import CompileError
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, FP32, INT32, TensorType

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
ONES = np.arange(6, dtype=np.float32).reshape(1, 2, 1, 3)
CASES = [
    ("reshape", {"x": X, "shape": (4, 6)}),
    ("reshape", {"x": X, "shape": (2, -1)}),
    ("reshape", {"x": X, "shape": (1, 2, 0, 0)}),
    ("reshape", {"x": X, "shape": (2, 1, -1, 0)}),
    ("transpose", {"x": X, "perm": (2, 0, 1)}),
    ("transpose", {"x": X, "perm": (-1, 0, -2)}),
    ("expand_dims", {"x": X, "axes": (0, -1, 2)}),
    ("squeeze", {"x": ONES}),
    ("squeeze", {"x": ONES, "axes": (0, -2)}),
    ("flatten2d", {"x": X}),
    ("flatten2d", {"x": X, "axis": -1}),
    ("shape", {"x": X}),
    ("concat", {"values": (X, X + 1), "axis": 1}),
    ("concat", {"values": (np.array(1, np.int32), np.array(2, np.int32)), "axis": 0}),
    ("stack", {"values": (X, X + 1), "axis": -1}),
    ("split", {"x": X, "num_splits": 2, "axis": -1}),
    ("split", {"x": X, "split_sizes": (1, 3), "axis": 2}),
    ("identity", {"x": X}),
]


@pytest.mark.parametrize(("op", "args"), CASES)
def test_agrees_with_coremltools(op, args):
    assert_agrees_with_coremltools(op, args)


def test_interleaved_values_take_turns():
    a, b = np.array([[1, 2]], np.float16), np.array([[3, 4]], np.float16)
    types, (value,) = ours("concat", values=(a, b), axis=1, interleave=True)
    assert (types[0].shape, value.tolist()) == ((1, 4), [[1, 3, 2, 4]])


def test_squeeze_leaves_sizes_other_than_one():
    """As Core ML and PyTorch do; coremltools' own value rule asks NumPy, which refuses."""
    types, (value,) = ours("squeeze", x=ONES, axes=(0, 1))
    assert types[0].shape == value.shape == (2, 1, 3)


def test_reshape_like_takes_pieces_of_shapes():
    """coremltools has no value rule for it."""
    refs = (np.zeros((2, 3, 7), np.float32), np.zeros((5, 4), np.float32))
    args = {"begins": (0, 1), "ends": (2, 0), "end_masks": (False, True)}
    types, (value,) = ours("reshape_like", x=X.ravel(), ref_tensors=refs, **args)
    assert types == (TensorType(FP32, (2, 3, 4)),)
    np.testing.assert_array_equal(value, X)


def test_a_shape_known_only_at_run_time_gives_unknown_sizes_and_is_obeyed():
    builder = Builder()
    x, shape = builder.input("x", (2, 3)), builder.input("shape", (3,), INT32)
    result = builder.reshape(x=x, shape=shape, name="y")
    assert result.type == TensorType(FP16, (None, None, None))
    given_back = evaluate(builder.program(result), {"x": np.ones((2, 3)), "shape": np.array([3, 1, -1])})
    assert given_back["y"].shape == (3, 1, 2)


sizes = st.lists(st.sampled_from([None, 1, 2, 3]), min_size=1, max_size=4)


@given(sizes, st.data())
def test_unknown_sizes_flow_through(shape, data):
    x = TensorType(FP16, tuple(shape))
    perm = tuple(data.draw(st.permutations(range(len(shape)))))
    assert KINDS["transpose"].infer({"x": x, "perm": perm})[0].shape == tuple(shape[axis] for axis in perm)
    (wider,) = KINDS["expand_dims"].infer({"x": x, "axes": (0,)})
    assert KINDS["squeeze"].infer({"x": wider, "axes": (0,)}) == (x,)
    (stacked,) = KINDS["stack"].infer({"values": (x, x), "axis": 0})
    (joined,) = KINDS["concat"].infer({"values": (stacked, stacked), "axis": 0})
    assert joined.shape == (4, *shape)
    assert KINDS["split"].infer({"x": joined, "num_splits": 2, "axis": 0}) == (stacked, stacked)
    assert KINDS["reshape"].infer({"x": x, "shape": (-1,)})[0].shape == ((None,) if None in shape else (x.size,))


def test_a_size_known_in_one_value_is_known_in_their_concatenation():
    values = (TensorType(FP16, (None, 2)), TensorType(FP16, (5, 3)))
    assert KINDS["concat"].infer({"values": values, "axis": 1}) == (TensorType(FP16, (5, 5)),)


X23 = TensorType(FP16, (2, 3))


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        (
            "reshape",
            {"x": X23, "shape": (4, 2)},
            r"reshape: tensor<fp16, \[2, 3\]> has 6 elements and shape \(4, 2\) does not",
        ),
        ("reshape", {"x": X23, "shape": (-1, -1)}, "reshape: .*-1 comes once"),
        ("transpose", {"x": X23, "perm": (0, 0)}, "transpose: .*twice"),
        ("transpose", {"x": X23, "perm": (0,)}, "transpose: perm .* does not name each axis"),
        ("expand_dims", {"x": X23, "axes": (4,)}, "expand_dims: axes hold 4"),
        ("squeeze", {"x": X23, "axes": (2,)}, "squeeze: axes hold 2"),
        ("flatten2d", {"x": X23, "axis": 3}, "flatten2d: axis 3"),
        ("concat", {"values": (), "axis": 0}, "concat: values is empty"),
        ("concat", {"values": (X23, TensorType(FP16, (3, 3))), "axis": 1}, "concat: .* differ outside axis 1"),
        ("concat", {"values": (X23, TensorType(FP32, (2, 3))), "axis": 1}, "concat: .*one element type"),
        ("stack", {"values": (X23, TensorType(FP16, (3, 3))), "axis": 0}, "stack: .* differ"),
        ("split", {"x": X23, "axis": 1, "num_splits": 2}, "split: axis 1 of x .* does not part in 2 equal"),
        ("split", {"x": X23, "axis": 1, "split_sizes": (1, 1)}, "split: split_sizes .* do not part axis 1"),
        (
            "reshape_like",
            {"x": X23, "ref_tensors": (X23,), "begins": (0,), "ends": (1,), "end_masks": (False,)},
            "reshape_like: .* has 6 elements",
        ),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
