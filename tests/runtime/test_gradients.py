"""Gradients that stay in surfaces: whose the surface is, and until when."""

import numpy as np
import pytest

from torchane.runtime.gradients import Gradients
from torchane.runtime.surfaces import SurfacePool
from torchane.runtime.twin import TwinDevice

SHAPE = (1, 8, 1, 32)


@pytest.fixture
def pool() -> SurfacePool:
    return SurfacePool(TwinDevice())


def address(view: np.ndarray) -> int:
    return view.__array_interface__["data"][0]


def test_a_gradient_is_known_by_where_its_numbers_begin(pool) -> None:
    gradients, surface = Gradients(), pool.take(SHAPE)
    surface.array[...] = 3
    view = gradients.keep(surface, 0.25, pool, (16, 16))
    found = gradients.at(address(view))
    assert view.shape == (16, 16) and found.factor == 0.25 and np.array_equal(found.numbers(), np.full(256, 3, np.float16))
    assert gradients.at(address(view) + 2) is None


def test_its_surface_comes_back_with_the_end_of_its_tensor(pool) -> None:
    gradients, surface = Gradients(), pool.take(SHAPE)
    view = gradients.keep(surface, 1.0, pool, SHAPE)
    where = address(view)
    assert pool.take(SHAPE) is not surface
    del view
    assert gradients.at(where) is None and pool.take(SHAPE) is surface


def test_a_surface_that_was_taken_does_not_come_back(pool) -> None:
    gradients, surface = Gradients(), pool.take(SHAPE)
    view = gradients.keep(surface, 1.0, pool, SHAPE)
    found = gradients.at(address(view))
    assert found.take((1, 1, 1, 256)) is None, "the weight's surface has another shape"
    assert found.take(SHAPE) is surface and found.take(SHAPE) is None
    del view, found
    assert pool.take(SHAPE) is not surface


def test_they_are_wanted_within_alone() -> None:
    gradients = Gradients()
    with gradients.wanted():
        assert gradients.are_wanted
        with gradients.wanted(False):
            assert not gradients.are_wanted
        assert gradients.are_wanted
    assert not gradients.are_wanted
