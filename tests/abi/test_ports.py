"""PortLayout: what the host copies where, and which ports the compiler chooses by itself."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchane.abi.ports import PortLayout, port_layout, weight_port_layout
from torchane.errors import CompileError
from torchane.mil.types import FP16, TensorType


@st.composite
def shapes_and_orders(draw):
    shape = tuple(draw(st.lists(st.sampled_from((1, 2, 3, 5, 8, 32, 64)), max_size=5)))
    shape = shape if math.prod(shape) <= 1 << 16 else shape[:3]
    order = tuple(draw(st.permutations([axis for axis, size in enumerate(shape) if size != 1])))
    return shape, order


@settings(max_examples=200, deadline=None, derandomize=True)
@given(shapes_and_orders(), st.sampled_from((32, 64)))
def test_any_tensor_in_any_order_has_a_legal_port_that_gives_it_back(shape_and_order, multiple):
    shape, order = shape_and_order
    layout = port_layout(shape, order, multiple)
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    surface = layout.stored(array)
    assert surface.shape == layout.shape and layout.is_legal(multiple) and layout.order == order
    assert (layout.logical_of(surface) == array).all()
    dense = array.transpose([*order, *(axis for axis in range(len(shape)) if axis not in order)])
    assert (surface[..., : layout.used].ravel() == dense.ravel()).all()


def test_tokens_lie_channels_first():
    assert port_layout((2, 32, 64), (2, 0, 1)) == PortLayout((2, 32, 64), (2, 0, 1), (1, 64, 1, 64), 64)


def test_heads_share_the_channel_axis_with_the_batch():
    assert port_layout((2, 4, 32, 16), (0, 1, 3, 2)).shape == (1, 8, 16, 32)


def test_axes_of_one_entry_are_nowhere():
    assert port_layout((1, 32, 64), (2, 1)) == PortLayout((1, 32, 64), (0, 2, 1), (1, 64, 1, 32), 32)


def test_rows_that_are_no_multiple_are_cut_anew_and_not_padded():
    layout = port_layout((20, 64), (1, 0))
    assert layout.shape == (1, 1, 1, 1280) and not layout.is_padded


def test_rows_cut_anew_stay_within_the_widest():
    layout = port_layout((8, 9001, 8), (2, 0, 1))
    assert layout.shape == (1, 8 * 9001 * 8 // layout.shape[3], 1, layout.shape[3])
    assert layout.shape[3] <= 16384 and layout.is_legal()


@pytest.mark.parametrize(
    ("size", "shape", "used"), [(50_000, (1, 1, 2000, 32), 25), (5_001, (1, 1, 1667, 32), 3), (50_021, (1, 50_021, 1, 32), 1)]
)
def test_a_long_row_is_cut_before_it_is_padded(size, shape, used):
    """A row of 50,000 would be padded by a matrix of 50,000 x 50,016; 50,021 is prime."""
    layout = port_layout((size,), (0,))
    assert (layout.shape, layout.used) == (shape, used)
    array = np.arange(size, dtype=np.float32)
    np.testing.assert_array_equal(layout.logical_of(layout.stored(array)), array)


def test_what_no_row_divides_is_padded():
    assert port_layout((3, 5), (1, 0)) == PortLayout((3, 5), (1, 0), (1, 1, 5, 32), 3)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_a_scalar_has_a_port_of_its_own(shape):
    layout = port_layout(shape, ())
    assert layout.shape == (1, 1, 1, 32) and layout.used == 1
    assert layout.stored(np.full(shape, 7.0)).ravel().tolist() == [7.0] + [0.0] * 31


@pytest.mark.parametrize(
    ("logical", "shape"),
    [
        ((96, 64), (1, 1, 96, 64)),
        ((64,), (1, 1, 1, 64)),
        ((96, 1, 64), (1, 1, 96, 64)),
        ((8, 3, 4, 32), (8, 3, 4, 32)),
        ((64, 20), (1, 1, 20, 64)),
        ((20, 24), (1, 1, 1, 480)),
        ((5,), (1, 1, 1, 32)),
    ],
)
def test_a_weight_keeps_the_order_of_torch_where_it_can(logical, shape):
    assert weight_port_layout(logical).shape == shape


def test_a_weight_is_swapped_where_only_its_rows_are_a_multiple():
    assert weight_port_layout((64, 20)).perm == (1, 0)


def test_stored_is_a_view_of_a_weight():
    weight = np.zeros((96, 64), np.float16)
    assert np.shares_memory(weight_port_layout(weight.shape).stored(weight), weight)


def test_logical_of_is_a_view_of_the_surface():
    layout = port_layout((32, 64), (1, 0))
    surface = np.zeros(layout.shape, np.float16)
    layout.logical_of(surface)[3, 5] = 1
    assert surface[0, 5, 0, 3] == 1


def test_the_type_is_what_a_device_allocates():
    assert port_layout((32, 64), (1, 0)).type == TensorType(FP16, (1, 64, 1, 32))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (((2, 3), (0, 0), (1, 1, 1, 6), 6), "name each axis once"),
        (((2, 3), (0, 1), (1, 1, 1, 32), 5), "does not hold the 6 elements"),
        (((2, 3), (0, 1), (1, 1, 6), 6), "give 4 sizes"),
        (((2, 3), (0, 1), (1, 1, 1, 6), 8), "cannot use 8"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(layout, message):
    with pytest.raises(CompileError, match=message):
        PortLayout(*layout)
