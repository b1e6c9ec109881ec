"""Ops that cut and pad, against coremltools, NumPy and PyTorch."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from second_opinion import assert_agrees_with_coremltools, ours, theirs

from torchane.errors import CompileError
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, INT32, TensorType

X = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
MASKS = {"begin_mask": (True, False, False), "end_mask": (False, True, False), "squeeze_mask": (False, False, True)}
CASES = [
    ("slice_by_size", {"x": X, "begin": (1, 0, 2), "size": (2, 3, -1)}),
    ("slice_by_size", {"x": X, "begin": (-2, 0, 2), "size": (1, -1, 3)}),
    ("slice_by_index", {"x": X, "begin": (1, 0, 4), "end": (3, 4, 5), "stride": (1, 2, 1)}),
    ("slice_by_index", {"x": X, "begin": (2, 1, 3), "end": (2, 9, 9)} | MASKS),
    ("slice_by_index", {"x": X, "begin": (-1, -3, 0), "end": (3, -1, 5)}),
    ("slice_by_index", {"x": X, "begin": (2, 3, 4), "end": (0, 0, 0), "stride": (-1, -2, -1), "end_mask": (True, True, True)}),
    ("slice_update", {"x": X, "update": -X[1:, ::2], "begin": (1, 0, 0), "end": (3, 4, 5), "stride": (1, 2, 1)}),
    ("pad", {"x": X, "pad": (1, 2, 0, 1), "constant_val": 7.0}),
    ("pad", {"x": X, "pad": (2, 1, 3, 2), "mode": "reflect"}),
    ("pad", {"x": X, "pad": (0, 2, 1, 0, 3, 3), "mode": "replicate"}),
    ("tile", {"x": X, "reps": (2, 1, 3)}),
    ("reverse", {"x": X}),
    ("reverse", {"x": X, "axes": (0, -1)}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "args"), CASES)
def test_agrees_with_coremltools(op, args):
    assert_agrees_with_coremltools(op, args)


@st.composite
def slices(draw):
    """A size, and a slice of it in MIL's words."""
    size = draw(st.integers(1, 5))
    step = draw(st.sampled_from([-2, -1, 1, 2, 3]))
    begin, end = draw(st.integers(-size, size - 1)), draw(st.integers(-size, size))
    return size, begin, end, step, draw(st.booleans()), draw(st.booleans()), draw(st.booleans())


@given(st.lists(slices(), min_size=1, max_size=3))
def test_slices_are_those_of_python(given_slices):
    sizes, begin, end, stride, *masks = zip(*given_slices)
    x = np.arange(np.prod(sizes), dtype=np.float32).reshape(sizes)
    at = tuple(
        (0 if from_start else b) if squeezed else slice(None if from_start else b, None if to_end else e, s)
        for _, b, e, s, from_start, to_end, squeezed in given_slices
    )
    args = dict(zip(("begin_mask", "end_mask", "squeeze_mask"), masks))
    types, (value,) = ours("slice_by_index", x=x, begin=begin, end=end, stride=stride, **args)
    assert types[0].shape == value.shape
    np.testing.assert_array_equal(value, x[at])
    (unknown,) = KINDS["slice_by_index"].infer(
        {"x": TensorType(FP16, (None,) * len(sizes)), "begin": begin, "end": end, "stride": stride, **args}
    )
    assert all(a in (None, b) for a, b in zip(unknown.shape, value.shape))


def test_slices_that_begin_and_end_at_run_time():
    builder = Builder()
    x, begin, end = builder.input("x", (6, 4)), builder.input("begin", (2,), INT32), builder.input("end", (2,), INT32)
    result = builder.slice_by_index(
        x=x, begin=begin, end=end, begin_mask=(False, True), end_mask=(False, True), name="y"
    )
    assert result.type.shape == (None, 4)
    array = np.arange(24).reshape(6, 4)
    given_back = evaluate(builder.program(result), {"x": array, "begin": np.array([2, 0]), "end": np.array([5, 0])})
    np.testing.assert_array_equal(given_back["y"], array[2:5])


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=3), st.data())
def test_padding_gives_the_shape_that_it_says(axes, data):
    mode = data.draw(st.sampled_from(["constant", "reflect", "replicate"]))
    assume(mode != "reflect" or all(max(a, b) < size for size, a, b in axes))
    x = np.zeros([size for size, _, _ in axes], np.float32)
    types, (value,) = ours("pad", x=x, pad=tuple(n for _, a, b in axes for n in (a, b)), mode=mode)
    assert types[0].shape == value.shape == tuple(size + a + b for size, a, b in axes)


def test_crop_drops_from_both_sides():
    """coremltools has no value rule for crop, reverse_sequence and sliding_windows."""
    args = {"crop_height": (1, 2), "crop_width": (0, 1)}
    types, (value,) = ours("crop", x=X, **args)
    assert types == theirs("crop", x=X, **{key: list(pair) for key, pair in args.items()})[0]
    np.testing.assert_array_equal(value, X[:, 1:2, 0:4])


def test_reverse_sequence_turns_only_the_length_it_is_given():
    x = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float16)
    _, (value,) = ours("reverse_sequence", x=x, lengths=np.array([3, 0], np.int32), seq_axis=1, batch_axis=0)
    assert value.tolist() == [[3, 2, 1, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize(("axis", "size", "stride"), [(0, 2, 1), (1, 3, 1), (-1, 2, 3)])
def test_sliding_windows_are_those_of_torch(axis, size, stride):
    types, (value,) = ours("sliding_windows", x=X, axis=axis, size=size, stride=stride)
    unfolded = torch.tensor(X).unfold(axis, size, stride).numpy()
    assert types == theirs("sliding_windows", x=X, axis=axis, size=size, stride=stride)[0]
    np.testing.assert_array_equal(value, np.moveaxis(unfolded, -1, axis % 3 + 1))


XT = TensorType(FP16, (3, 4))


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        (
            "slice_by_size",
            {"x": XT, "begin": (0, 2), "size": (1, 3)},
            "slice_by_size: axis 1 of x .*begin 2 and size 3 leave",
        ),
        ("slice_by_size", {"x": XT, "begin": (0,), "size": (1, 3)}, "slice_by_size: begin .* has 1 entries"),
        (
            "slice_by_index",
            {"x": XT, "begin": (0, 0), "end": (1, 1), "stride": (0, 1)},
            "slice_by_index: stride .*never 0",
        ),
        ("slice_by_index", {"x": XT, "begin": (0, 0), "end": (1,)}, "slice_by_index: end .* has 1 entries"),
        (
            "slice_by_index",
            {"x": XT, "begin": (3, 0), "end": (1, 1), "squeeze_mask": (True, False)},
            "slice_by_index: axis 0 of x .* has no entry 3",
        ),
        (
            "slice_update",
            {"x": XT, "update": TensorType(FP16, (1,)), "begin": (0, 0), "end": (1, 2)},
            r"slice_update: update is .*shape \[1, 2\]",
        ),
        (
            "slice_update",
            {"x": XT, "update": TensorType(FP16), "begin": (0, 0), "end": (1, 2)},
            "slice_update: .*scalar",
        ),
        ("pad", {"x": XT, "pad": (1,)}, "pad: pad .*a pair of sizes"),
        ("pad", {"x": XT, "pad": (4, 0), "mode": "reflect"}, "pad: axis 1 of x .* is too short to reflect 4"),
        ("pad", {"x": XT, "pad": (4, 0), "mode": "wrap"}, "pad: mode is 'wrap'"),
        ("tile", {"x": XT, "reps": (2,)}, "tile: reps .*one count, 1 or more, for each axis"),
        ("reverse", {"x": XT, "axes": (2,)}, "reverse: axes hold 2"),
        ("sliding_windows", {"x": XT, "axis": 0, "size": 4}, "sliding_windows: windows of 4, 1 apart, do not fit"),
        ("crop", {"x": TensorType(FP16, (1, 3, 4)), "crop_height": (2, 1), "crop_width": (0, 0)}, "crop: crop_height"),
        (
            "reverse_sequence",
            {"x": XT, "lengths": TensorType(INT32, (3,))},
            "reverse_sequence: seq_axis and batch_axis are both 0",
        ),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
