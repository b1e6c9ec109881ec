"""Threads: any number, from several callers at once, and after a fork."""

import os
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from torchane import native


def test_several_callers_at_once_get_their_own_results(set_threads: Callable[[int], None]) -> None:
    set_threads(3)
    arrays = [np.full(300_000, value, np.float32) for value in range(4)]
    results: dict[int, list[float]] = {}

    def call(which: int) -> None:
        results[which] = [native.sum_of_squares([arrays[which]]) for _ in range(50)]

    callers = [threading.Thread(target=call, args=(which,)) for which in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == {which: [300_000.0 * which**2] * 50 for which in range(4)}


def test_the_number_of_threads_can_change_between_calls(set_threads: Callable[[int], None]) -> None:
    array = np.ones(500_000, np.float32)
    for count in (1, 4, 2, 7, 1, 3):
        set_threads(count)
        assert native.get_threads() == count
        assert native.sum_of_squares([array]) == 500_000


def test_threads_without_work_sleep(set_threads: Callable[[int], None]) -> None:
    set_threads(3)
    array = np.ones(500_000, np.float32)
    for _ in range(5):
        assert native.sum_of_squares([array]) == 500_000
    time.sleep(0.02)
    used_s = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - used_s < 0.03


def test_work_that_comes_after_a_while_is_shared_again(set_threads: Callable[[int], None]) -> None:
    """Within the time in which threads look on, at its end, and when they sleep."""
    set_threads(4)
    array = np.ones(500_000, np.float32)
    for pause_s in (0.0, 0.0005, 0.0019, 0.002, 0.0021, 0.01, 0.0005, 0.0):
        for _ in range(5):
            time.sleep(pause_s)
            assert native.sum_of_squares([array]) == 500_000


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_computes(set_threads: Callable[[int], None]) -> None:
    """A data loader forks; the child has none of the parent's threads."""
    set_threads(2)
    array = np.ones(500_000, np.float32)
    assert native.sum_of_squares([array]) == 500_000
    child = os.fork()
    if child == 0:
        os._exit(0 if native.sum_of_squares([array]) == 500_000 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert native.sum_of_squares([array]) == 500_000
