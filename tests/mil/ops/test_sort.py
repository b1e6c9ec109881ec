"""Order and position, against coremltools, NumPy and PyTorch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from second_opinion import assert_agrees_with_coremltools, ours, theirs

from torchane.errors import CompileError
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, INT32, TensorType

X = np.random.default_rng(6).permutation(24).reshape(2, 3, 4).astype(np.float32)
CASES = [
    *(("argsort", {"x": X, "axis": axis, "ascending": up}) for axis in (0, -1) for up in (True, False)),
    *(("topk", {"x": X, "k": 2, "axis": 1, "ascending": up}) for up in (True, False)),
    ("topk", {"x": X, "k": 3, "output_indices_dtype": "uint16"}),
    ("topk", {"x": X, "k": 1, "return_indices": False}),
    *(("cumsum", {"x": X, "axis": axis, "reverse": back}) for axis in (0, -1) for back in (True, False)),
    *(("band_part", {"x": X, "lower": low, "upper": up}) for low, up in ((0, 0), (-1, 1), (1, -1), (-1, -1))),
]


@pytest.mark.parametrize(("op", "args"), CASES)
def test_agrees_with_coremltools(op, args):
    assert_agrees_with_coremltools(op, args)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.booleans())
def test_equal_entries_keep_their_order(values, ascending):
    x = np.array(values, np.float16)
    _, (value,) = ours("argsort", x=x, ascending=ascending)
    order = torch.sort(torch.tensor(x), descending=not ascending, stable=True).indices.numpy()
    np.testing.assert_array_equal(value, order)


@pytest.mark.parametrize("reverse", [False, True])
def test_an_exclusive_sum_leaves_the_entry_itself_out(reverse):
    """coremltools' value rule for it raises."""
    x = np.array([[1, 2, 3]], np.float32)
    _, (value,) = ours("cumsum", x=x, axis=1, exclusive=True, reverse=reverse)
    assert value.tolist() == ([[5, 3, 0]] if reverse else [[0, 1, 3]])


def test_non_zero_counts_only_at_run_time():
    x = np.array([[0, 2], [3, 0]], np.float32)
    types, (value,) = ours("non_zero", x=x)
    assert types == (TensorType(INT32, (None, 2)),)
    np.testing.assert_array_equal(value, theirs("non_zero", x=x)[1][0])


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("topk", {"x": TensorType(FP16, (3,)), "k": 4}, "topk: k is 4 and axis 0 of x .* has 3 entries"),
        ("topk", {"x": TensorType(FP16, (3,)), "output_indices_dtype": "fp16"}, "topk: output_indices_dtype"),
        ("argsort", {"x": TensorType(FP16, (3,)), "axis": 1}, "argsort: axis 1"),
        ("cumsum", {"x": TensorType(FP16, (3,)), "axis": 1}, "cumsum: axis 1"),
        ("band_part", {"x": TensorType(FP16, (3,))}, "band_part: .*rank 2 to 5"),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
