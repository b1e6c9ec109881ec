"""Orders of axes: what transposes, reshapes and views do to them, against NumPy on small arrays."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchane.passes.layout.order import (
    channels_first,
    completed,
    fit,
    gathered,
    natural,
    reshape_blocks,
    reshaped,
    runs_between,
    steps_between,
    transposed,
)  # fmt: skip

small_shapes = st.lists(st.sampled_from((1, 2, 3, 4)), max_size=5).map(tuple)


def stored(array: np.ndarray, order: tuple[int, ...]) -> list[int]:
    """The row of elements that an order means."""
    return array.transpose([*(a for a in range(array.ndim) if a not in order), *order]).ravel().tolist()


@st.composite
def arrays_and_orders(draw):
    shape = draw(small_shapes)
    return np.arange(math.prod(shape)).reshape(shape), tuple(draw(st.permutations(natural(shape))))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(arrays_and_orders(), st.data())
def test_a_transpose_changes_no_stored_element(found, data):
    array, order = found
    perm = tuple(data.draw(st.permutations(range(array.ndim))))
    assert stored(array.transpose(perm), transposed(order, perm)) == stored(array, order)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(arrays_and_orders(), st.data())
def test_a_reshape_either_changes_no_stored_element_or_says_what_to_gather(found, data):
    array, order = found
    sizes = list(data.draw(st.permutations([2] * array.size.bit_length())))
    shape = next((s for s in (tuple(sizes), array.shape[::-1], (array.size,)) if math.prod(s) == array.size), ())
    blocks = reshape_blocks(array.shape, shape)
    after = reshaped(order, blocks)
    for read in (order,) if after is not None else gathered(order, blocks):
        assert sorted(read) == sorted(order)
        assert stored(array.reshape(shape), reshaped(read, blocks)) == stored(array, read)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.permutations(range(6)), st.permutations(range(6)))
def test_any_order_is_reached_by_transposes_of_four_axes(source, target):
    source, target = tuple(source), tuple(target)
    for step in steps_between(source, target):
        runs, perm = runs_between(source, step)
        assert len(runs) <= 4
        assert tuple(axis for run in perm for axis in runs[run]) == step
        source = step
    assert source == target


def test_blocks_are_as_small_as_they_can_be():
    assert reshape_blocks((2, 32, 64), (64, 4, 16)) == (((0, 1), (0,)), ((2,), (1, 2)))


def test_blocks_that_share_no_cut_become_one():
    assert reshape_blocks((4, 6), (6, 4)) == (((0, 1), (0, 1)),)


def test_a_merge_of_axes_stored_apart_keeps_no_order():
    assert reshaped((2, 0, 1), reshape_blocks((2, 3, 4), (6, 4))) == (1, 0)
    assert reshaped((0, 2, 1), reshape_blocks((2, 3, 4), (6, 4))) is None


def test_gathered_axes_stay_at_the_place_of_one_of_them_the_first_stored_to_begin_with():
    assert list(gathered((0, 2, 1), reshape_blocks((2, 3, 4), (6, 4)))) == [(0, 1, 2), (2, 0, 1)]


def test_a_detour_is_made_only_for_more_than_four_runs():
    assert list(steps_between((0, 1, 2, 3), (3, 2, 1, 0))) == [(3, 2, 1, 0)]
    assert len(list(steps_between((0, 1, 2, 3, 4), (4, 3, 2, 1, 0)))) == 2
    assert list(steps_between((0, 1), (0, 1))) == []


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((), ()),
        ((64,), (0,)),
        ((32, 64), (1, 0)),
        ((2, 32, 64), (2, 0, 1)),
        ((2, 4, 32, 16), (0, 1, 3, 2)),
        ((5, 1), (0,)),
    ],
)
def test_channels_come_first_where_nobody_asks(shape, order):
    assert channels_first(shape) == order


def test_missing_axes_go_where_another_operand_has_them():
    assert completed((0, 2), (0, 1, 2), [(2, 1)]) == (0, 2, 1)
    assert completed((0, 2), (0, 1, 2), [(1, 2)]) == (0, 1, 2)
    assert completed((2, 0), (0, 1, 2), []) == (2, 0, 1)
    assert completed((2, 0), (0, 1, 2), [], in_front=True) == (1, 2, 0)


@pytest.mark.parametrize(
    ("shape", "marks", "view"),
    [
        ((), (), (1, 1, 1, 1)),
        ((64,), "a", (1, 64, 1, 1)),
        ((64, 32), "aa", (1, 64, 1, 32)),
        ((4, 16, 32), "abb", (1, 4, 16, 32)),
        ((2, 4, 16, 32), "aabb", (1, 8, 16, 32)),
        ((2, 4, 16, 32), "abab", (2, 4, 16, 32)),
        ((2, 3, 4, 16, 32), "aaabb", (1, 24, 16, 32)),
    ],
)
def test_a_view_joins_axes_of_equal_marks_from_the_front(shape, marks, view):
    assert fit(shape, marks)[0] == view


def test_five_runs_of_marks_fit_no_view():
    assert fit((2, 2, 2, 2, 2), "ababa") is None


def test_a_joined_axis_is_no_longer_than_a_chip_takes():
    """(8 heads, 2 that share each, 128 numbers, 8 x 256 tokens): three axes would be one of 262,144."""
    assert fit((8, 2, 128, 2048), "abcc")[0] == (8, 2, 128, 2048)
    assert fit((8, 2, 128, 128), "abcc")[0] == (1, 8, 2, 16384)
    assert fit((2, 8, 2, 128, 2048), "aabcc")[0] == (16, 2, 128, 2048)
    assert fit((2, 2, 128, 2048, 2), "abccd")[0] == (2, 2, 262144, 2)  # five are too many


def test_a_template_is_kept_if_it_cuts_between_marks():
    assert fit((4, 16, 32), "aab", [(1, 64, 1, 32)]) == ((1, 64, 1, 32), (None, "a", None, "b"))
    assert fit((4, 16, 32), "abb", [(1, 64, 1, 32)])[0] == (1, 4, 16, 32)
