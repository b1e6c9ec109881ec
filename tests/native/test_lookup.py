"""Rows looked up and added up, against torch's own kernels."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from torchane import native
from torchane.errors import DeviceError

aten = torch.ops.aten
SHAPES = [(5, 3, 7), (2048, 128, 300), (50, 768, 1), (7, 1, 4000), (3, 40000, 9)]


@pytest.mark.parametrize("rows, columns, count", SHAPES)
def test_rows_are_those_of_the_table(rows: int, columns: int, count: int) -> None:
    rng = np.random.default_rng(0)
    table, index = rng.standard_normal((rows, columns)).astype(np.float32), rng.integers(0, rows, count)
    found = np.empty((count, columns), np.float32)
    assert native.take_rows(found, table, index)
    assert np.array_equal(found, table[index])


@pytest.mark.parametrize("padding", [-1, 2])
@pytest.mark.parametrize("rows, columns, count", SHAPES)
def test_sums_of_rows_have_the_bits_of_torchs_for_any_number_of_threads(
    rows: int, columns: int, count: int, padding: int, set_threads: Callable[[int], None]
) -> None:
    rng = np.random.default_rng(1)
    grad, index = rng.standard_normal((count, columns)).astype(np.float32), rng.integers(0, min(rows, 5), count)
    grad[::3] = -0.0
    wanted = aten.embedding_dense_backward.default(torch.from_numpy(grad), torch.from_numpy(index), rows, padding, False).numpy()
    for threads in (1, 2, 3, 7):
        set_threads(threads)
        sums = np.full((rows, columns), np.nan, np.float32)
        assert native.sum_rows(sums, grad, index, padding)
        assert sums.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("wrong", [-1, 4])
def test_without_such_a_row_nothing_is_written(wrong: int) -> None:
    table, rows, index = np.ones((4, 2), np.float32), np.full((3, 2), 7, np.float32), np.array([0, wrong, 1])
    assert not native.take_rows(rows, table, index)
    assert (rows == 7).all()
    assert not native.sum_rows(table, rows, index)
    assert (table == 1).all()


def test_shapes_that_do_not_fit_are_named() -> None:
    table, index = np.ones((4, 2), np.float32), np.array([0, 1])
    with pytest.raises(DeviceError, match=r"to has the shape \(2, 3\); \(2, 2\) is needed"):
        native.take_rows(np.empty((2, 3), np.float32), table, index)
    with pytest.raises(DeviceError, match=r"from has the shape \(3, 2\); \(2, 2\) is needed"):
        native.sum_rows(table, np.empty((3, 2), np.float32), index)
    with pytest.raises(DeviceError, match="table holds float64"):
        native.take_rows(np.empty((2, 2), np.float32), table.astype(np.float64), index)
    with pytest.raises(DeviceError, match=r"table has the shape \(8\)"):
        native.take_rows(np.empty((2, 2), np.float32), table.reshape(-1), index)
