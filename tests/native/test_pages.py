"""Large arrays: where they begin, and that memory comes back."""

import numpy as np
import pytest

from torchane.native import pages

LARGE = (1000, 1040)  # 4.0 MiB of fp32


def address(array):
    return array.__array_interface__["data"][0]


def test_a_large_array_begins_at_a_large_page_and_a_small_one_at_a_cache_line():
    assert address(pages.empty(LARGE)) % pages.PAGE_BYTES == 0
    assert address(pages.zeros((3, 5), np.float16)) % pages.LINE_BYTES == 0


def test_an_array_that_would_leave_much_of_its_last_page_empty_takes_small_ones():
    """2.25 MiB, a matrix of 768 x 768: two large pages would be 78 % more."""
    assert any(address(array) % pages.PAGE_BYTES for array in [pages.empty((768, 768)) for _ in range(8)])


@pytest.mark.parametrize("shape", [(), (0, 4), (3, 5), LARGE])
def test_zeros_is_what_numpy_gives(shape):
    array = pages.zeros(shape, np.float16)
    assert array.dtype == np.float16 and array.flags.c_contiguous and array.flags.writeable
    np.testing.assert_array_equal(array, np.zeros(shape, np.float16))


def test_memory_comes_back_when_the_last_view_is_gone_and_not_before():
    memory = pages.Reused()
    first = memory.empty(LARGE)
    view, where = first[3:], address(first)
    del first
    assert address(memory.empty(LARGE)) != where, "a view still reads it"
    del view
    assert address(memory.empty((1040, 1000))) == where, "of the same size, whatever the shape"


def test_two_arrays_at_once_share_nothing():
    memory = pages.Reused()
    first, second = memory.empty(LARGE), memory.empty(LARGE)
    assert not np.shares_memory(first, second)


def test_trimmed_memory_is_not_given_out_again():
    memory = pages.Reused()
    kept = memory.empty(LARGE)
    memory.empty(LARGE)
    memory.trim()
    assert not memory._free
    del kept
    assert sum(map(len, memory._free.values())) == 1
