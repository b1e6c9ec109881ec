"""Every instruction set, and any number of threads."""

from collections.abc import Callable, Iterator

import pytest

from torchane import native


@pytest.fixture(params=native.isas() if native.is_built() else ["not built"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this processor has, one after the other."""
    before = native.get_isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = native.get_threads()
    yield native.set_threads
    native.set_threads(before)
