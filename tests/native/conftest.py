"""Any number of threads."""

from collections.abc import Callable, Iterator

import pytest

from torchane import native


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = native.get_threads()
    yield native.set_threads
    native.set_threads(before)
