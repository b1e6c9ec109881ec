"""Large arrays: where they begin, that memory comes back, and that it is fetched ahead."""

import mmap
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from torchane import native
from torchane.errors import DeviceError
from torchane.native import pages

LARGE = (1000, 1040)  # 4.0 MiB of fp32


def address(array):
    return array.__array_interface__["data"][0]


def test_a_large_array_begins_at_a_large_page_and_a_small_one_at_a_cache_line(balloon):
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


HUGE = (pages.FETCHED_BYTES // 4,)


def faults_of(function):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    function()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_what_was_fetched_is_written_without_a_fault():
    array, other = pages.zeros(HUGE), pages.zeros(HUGE)
    pages.Fetching([array]).finish()
    fetched, not_fetched = faults_of(lambda: array.fill(1)), faults_of(lambda: other.fill(1))
    assert fetched < 20 and fetched < not_fetched


def test_numbers_that_are_there_stay_and_others_may_write_meanwhile():
    array = pages.zeros(HUGE)
    array[::1000] = np.arange(len(array[::1000]))
    with pages.Fetching([array]):
        array[1::1000] = 7
    np.testing.assert_array_equal(array[::1000], np.arange(len(array[::1000])))
    assert (array[1::1000] == 7).all() and array[2::1000].max() == 0


def test_memory_that_is_fetched_ahead_is_counted_until_it_is_used():
    before = pages.fetched_ahead()
    fetching = pages.Fetching([pages.zeros(HUGE)])
    fetching._fetch.run()
    assert pages.fetched_ahead() - before == pages.FETCHED_BYTES
    fetching.finish()
    assert pages.fetched_ahead() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_finish_fetches_with_one_thread_as_with_two(threads):
    count = native.get_threads()
    native.set_threads(threads)
    try:
        array = pages.zeros(HUGE)
        fetching = pages.Fetching([array])
        assert (fetching._thread is None) is (threads == 1)
        fetching.finish()
        assert faults_of(lambda: array.fill(1)) < 20
    finally:
        native.set_threads(count)


def test_little_memory_is_left_to_whoever_writes_it():
    fetching = pages.Fetching([pages.zeros(LARGE)])
    fetching.finish()
    assert fetching.bytes == 0


def test_a_stopped_fetch_begins_nothing_more():
    fetch = native.Fetch([pages.zeros(HUGE)])
    fetch.stop()
    assert fetch.run() is None and faults_of(fetch.run) == 0


@pytest.mark.parametrize("array", [np.zeros((4, 4))[:, 1], np.broadcast_to(np.zeros(1), (4,))])
def test_a_fetch_of_strided_or_read_only_arrays_is_refused(array):
    with pytest.raises(DeviceError, match="not dense, is read-only"):
        native.Fetch([array])


@pytest.fixture
def balloon(tmp_path, monkeypatch):
    """A virtual machine whose balloon has the features that are written there."""
    monkeypatch.setattr(pages, "BALLOONS", tmp_path)
    pages.hands_memory_back.cache_clear()
    (tmp_path / "virtio3").mkdir()
    yield tmp_path / "virtio3" / "features"
    pages.hands_memory_back.cache_clear()


@pytest.mark.parametrize("features, hands_back", [("0110010100", True), ("0110000100", False), ("01", False), (None, False)])
def test_a_balloon_that_reports_free_pages_is_seen_by_its_feature(balloon, features, hands_back):
    if features is not None:
        balloon.write_text(features)
    assert pages.hands_memory_back() is hands_back


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_where_free_memory_goes_back_to_the_host_a_large_array_takes_small_pages(balloon):
    balloon.write_text("0110010100")
    array = pages.empty((4096, 1024))
    array[:] = 1
    assert large_pages_kb(array) == 0
    np.testing.assert_array_equal(pages.zeros((2048, 1024)), np.zeros((2048, 1024), np.float32))
    assert pages.zeros((2048, 2048), np.float16).flags.writeable


ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="small pages are asked for on Linux")


@pytest.fixture
def reserved(balloon):
    """64 MiB that arrays are cut from."""
    balloon.write_text("0110010100")
    yield pages.reserve(pages.FETCHED_BYTES)
    pages.drop_reserve()


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@ON_LINUX
def test_large_arrays_are_cut_from_the_reserve_and_written_without_a_fault(reserved):
    pages.Fetching([reserved]).finish()
    small, first, second = pages.zeros((3, 5)), pages.zeros((2048, 1024)), pages.empty((2048, 1025), np.float16)
    assert np.shares_memory(first, reserved) and np.shares_memory(second, reserved) and not np.shares_memory(small, reserved)
    assert not np.shares_memory(first, second) and address(first) % mmap.PAGESIZE == address(second) % mmap.PAGESIZE == 0
    assert not first.any() and first.flags.writeable and faults_of(lambda: (first.fill(1), second.fill(1))) < 20


@ON_LINUX
def test_an_array_that_the_reserve_has_no_room_for_has_memory_of_its_own(reserved):
    array = pages.zeros((reserved.nbytes // 4 + 1,))
    assert not np.shares_memory(array, reserved)
    whole = pages.zeros((reserved.nbytes // 4,))
    assert np.shares_memory(whole, reserved) and not np.shares_memory(pages.zeros((2048, 1024)), reserved)


@ON_LINUX
def test_what_an_array_took_goes_back_to_the_system_with_its_last_view(reserved):
    array = pages.zeros((reserved.nbytes // 4,))
    array.fill(1)
    view = array[5:7]
    del array
    assert view[0] == 1
    held = resident_bytes()
    del view
    assert held - resident_bytes() > 0.9 * reserved.nbytes


@ON_LINUX
def test_what_nobody_took_goes_back_when_the_reserve_is_dropped(reserved):
    pages.Fetching([reserved]).finish()
    array = pages.zeros((2048, 1024))
    array.fill(3)
    held = resident_bytes()
    pages.drop_reserve()
    assert held - resident_bytes() > 0.8 * (reserved.nbytes - array.nbytes)
    assert (array == 3).all() and not np.shares_memory(pages.zeros((2048, 1024)), reserved)


def test_there_is_no_reserve_where_faults_cost_little_and_none_for_little_memory(balloon):
    assert pages.reserve(pages.FETCHED_BYTES) is None
    balloon.write_text("0110010100")
    pages.hands_memory_back.cache_clear()
    assert pages.reserve(pages.LARGE_BYTES - 2 * mmap.PAGESIZE) is None


def large_pages_kb(array):
    """Of the mapping that an array lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            start, end = (int(one, 16) for one in head.split("-"))
            inside = start <= address(array) < end
        elif inside and head == "AnonHugePages:":
            return int(line.split()[1])
    raise AssertionError("no mapping holds it")
