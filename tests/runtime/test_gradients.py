"""Gradients that stay in surfaces: whose the surface is, and until when."""

import numpy as np
import pytest

from torchane.mil.types import FP16, TensorType
from torchane.runtime import gradients
from torchane.runtime.gradients import Gradient, Gradients, gradient_at, keep
from torchane.runtime.surfaces import SurfacePool
from torchane.runtime.twin import TwinDevice

SHAPE = (1, 8, 1, 32)


@pytest.fixture
def pool() -> SurfacePool:
    return SurfacePool(TwinDevice())


def left(surface, pool, factor: float = 1.0, shape: tuple[int, ...] = SHAPE):
    """A gradient that fills a surface, by its view."""
    gradient = Gradient(surface, pool)
    gradient.holds(factor)
    return keep(gradient, shape)


def true_numbers(pieces) -> np.ndarray:
    return np.concatenate([one if isinstance(one, np.ndarray) else one[0].astype(np.float32) * np.float32(one[1]) for one in pieces])


def address(view: np.ndarray) -> int:
    return view.__array_interface__["data"][0]


def test_a_gradient_is_known_by_where_its_numbers_begin(pool) -> None:
    surface = pool.take(SHAPE)
    surface.array[...] = 3
    view = left(surface, pool, 0.25, (16, 16))
    found = gradient_at(address(view))
    assert view.shape == (16, 16) and np.array_equal(true_numbers(found.pieces()), np.full(256, 0.75, np.float32))
    assert gradient_at(address(view) + 2) is None


def test_its_surface_comes_back_with_the_end_of_its_tensor(pool) -> None:
    surface = pool.take(SHAPE)
    view = left(surface, pool)
    where = address(view)
    assert pool.take(SHAPE) is not surface
    del view
    assert gradient_at(where) is None and pool.take(SHAPE) is surface


def test_a_surface_that_was_taken_does_not_come_back(pool) -> None:
    surface = pool.take(SHAPE)
    view = left(surface, pool)
    found = gradient_at(address(view))
    assert found.take((1, 1, 1, 256)) is None, "the weight's surface has another shape"
    assert found.take(SHAPE) is surface and found.take(SHAPE) is None
    del view, found
    assert pool.take(SHAPE) is not surface


def test_parts_that_programs_write_are_one_gradient_with_a_factor_each(pool) -> None:
    gradient = Gradient(pool.take((1, 1, 1, 96)), pool)
    view = keep(gradient, (3, 32))
    for begin, rows, factor in ((32, 2, 0.5), (0, 1, 4.0)):
        part = gradient.part(begin, TensorType(FP16, (1, rows, 1, 32)))
        part.array[...] = rows
        gradient.holds(factor, begin, begin + part.array.size)
    assert np.array_equal(view, np.repeat([1, 2, 2], 32).reshape(3, 32))
    assert np.array_equal(true_numbers(gradient.pieces()), np.repeat([4.0, 1.0, 1.0], 32))
    assert np.array_equal(true_numbers(gradient.pieces(16, 40)), np.repeat([4.0, 1.0], [16, 8]))


@pytest.mark.parametrize("costs", [1, gradients.ROW_COSTS], ids=["beside the surface", "in a copy of all of it"])
def test_rows_that_the_host_adds_are_added_in_float32_and_leave_the_surface_as_it_is(pool, monkeypatch, costs: int) -> None:
    monkeypatch.setattr(gradients, "ROW_COSTS", costs)
    gradient = Gradient(pool.take((1, 1, 1, 128)), pool)
    view = keep(gradient, (4, 32))
    view[...] = 3
    gradient.holds(0.5, 0, 64), gradient.holds(0.25, 64, 128)
    small = np.float32(2.0**-20)
    gradient.add_rows(np.array([1, 3]), np.full((2, 32), small))
    gradient.add_rows(np.array([3]), np.full((1, 32), small))
    wanted = np.repeat(np.array([1.5, 1.5 + small, 0.75, 0.75 + small + small], np.float32), 32)
    assert np.array_equal(true_numbers(gradient.pieces()), wanted) and np.array_equal(view, np.full((4, 32), 3))
    assert np.array_equal(true_numbers(gradient.pieces(32, 128)), wanted[32:])


def test_they_are_wanted_within_alone() -> None:
    wanted = Gradients()
    with wanted.wanted():
        assert wanted.are_wanted
        with wanted.wanted(False):
            assert not wanted.are_wanted
        assert wanted.are_wanted
    assert not wanted.are_wanted
