"""gather and scatter, against coremltools, NumPy and PyTorch."""

import numpy as np
import pytest
import torch
from second_opinion import assert_agrees_with_coremltools, ours, theirs

from torchane.errors import CompileError
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, INT32, TensorType

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
ROWS = np.array([[2, 0], [1, -1]], np.int32)
ALONG = np.array([[[0, 1, 2, 0]], [[2, 2, 0, 1]]], np.int32)
CASES = [
    ("gather", {"x": X, "indices": ROWS, "axis": 1}),
    ("gather", {"x": X, "indices": np.array(1, np.int32)}),
    ("gather", {"x": X, "indices": ROWS, "axis": 1, "batch_dims": 1}),
    ("gather_along_axis", {"x": X, "indices": ALONG, "axis": 1}),
]


@pytest.mark.parametrize(("op", "args"), CASES)
def test_agrees_with_coremltools(op, args):
    assert_agrees_with_coremltools(op, args)


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_gather_nd_names_entries_by_rows_of_indices(batch_dims):
    indices = np.array([[0, 1], [1, 2]], np.int32)
    types, (value,) = ours("gather_nd", x=X, indices=indices, batch_dims=batch_dims)
    wanted = np.stack([X[0, 0, 1], X[1, 1, 2]]) if batch_dims else np.stack([X[0, 1], X[1, 2]])
    assert types == theirs("gather_nd", x=X, indices=indices, batch_dims=batch_dims)[0]
    np.testing.assert_array_equal(value, wanted)


MODES = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": max,
    "min": min,
    "update": lambda a, b: b,
}


@pytest.mark.parametrize("mode", MODES)
def test_scatters_agree_with_a_loop(mode):
    data = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    indices, updates = np.array([2, 0], np.int32), np.array([[2, 4], [-8, 16]], np.float32)
    wanted = data.copy()
    for index, update in zip(indices, updates):
        wanted[index] = [MODES[mode](a, b) for a, b in zip(wanted[index], update)]
    along = np.repeat(indices[:, None], 2, axis=1)
    for op, at in (("scatter", indices), ("scatter_along_axis", along), ("scatter_nd", indices[:, None])):
        types, (value,) = ours(op, data=data, indices=at, updates=updates, mode=mode)
        assert types == theirs(op, data=data, indices=at, updates=updates, mode=mode)[0]
        np.testing.assert_array_equal(value, wanted, err_msg=op)


def test_updates_of_one_place_all_count():
    data, indices = np.zeros((1, 3), np.float32), np.array([[1, 1, 0]], np.int32)
    updates = np.array([[1, 2, 4]], np.float32)
    _, (value,) = ours("scatter_along_axis", data=data, indices=indices, updates=updates, axis=-1)
    wanted = torch.zeros(1, 3).scatter_add(1, torch.tensor(indices, dtype=torch.int64), torch.tensor(updates))
    np.testing.assert_array_equal(value, wanted.numpy())


def test_unknown_sizes_flow_through():
    x, indices = TensorType(FP16, (None, 3, None)), TensorType(INT32, (5, None))
    assert KINDS["gather"].infer({"x": x, "indices": indices, "axis": 1})[0].shape == (None, 5, None, None)
    assert KINDS["gather_nd"].infer({"x": x, "indices": TensorType(INT32, (None, 2))})[0].shape == (None, None)


@pytest.mark.parametrize("op", ["gather", "gather_along_axis", "gather_nd"])
def test_an_index_that_leaves_the_axis_is_refused(op):
    shape = {"gather": (1,), "gather_along_axis": (1, 3, 4), "gather_nd": (1, 1)}[op]
    with pytest.raises(CompileError, match=f"{op}: the index 2 leaves an axis of 2 entries"):
        ours(op, x=X, indices=np.full(shape, 2, np.int32))


def test_a_negative_index_is_refused_where_indices_are_validated():
    with pytest.raises(CompileError, match="gather: the index -1 leaves"):
        ours("gather", x=X, indices=np.array([-1], np.int32), validate_indices=True)


D, U = TensorType(FP16, (2, 3)), TensorType(FP16, (1, 3))


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("gather", {"x": D, "indices": TensorType(FP16, (1,))}, "gather: indices is .*must hold integers"),
        ("gather", {"x": D, "indices": TensorType(INT32, (1,)), "axis": 2}, "gather: axis 2"),
        ("gather", {"x": D, "indices": TensorType(INT32, (1,)), "batch_dims": 1}, "gather: batch_dims 1 with axis 0"),
        ("gather_along_axis", {"x": D, "indices": TensorType(INT32, (1,))}, "gather_along_axis: .*as many axes"),
        ("gather_nd", {"x": D, "indices": TensorType(INT32, (1, 3))}, "gather_nd: the last axis of indices"),
        (
            "scatter",
            {"data": D, "indices": TensorType(INT32, (2,)), "updates": U},
            r"scatter: updates is .*shape \[2, 3\]",
        ),
        (
            "scatter",
            {"data": D, "indices": TensorType(INT32, (1,)), "updates": U, "mode": "or"},
            "scatter: mode is 'or'; it must be one of add",
        ),
        (
            "scatter_nd",
            {"data": D, "indices": TensorType(INT32, (1, 2)), "updates": U},
            r"scatter_nd: updates .*shape \[1\]",
        ),
        (
            "scatter_along_axis",
            {"data": D, "indices": TensorType(INT32, (1,)), "updates": U},
            "scatter_along_axis: .*as many axes",
        ),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
