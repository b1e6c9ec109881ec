"""Small programs beside eager float32: nothing differs in silence."""

import programs_graphs  # noqa: F401  (fills the catalogue)
import programs_ops  # noqa: F401
import pytest
from hunting import PROGRAMS, differences

pytestmark = pytest.mark.long


def test_there_are_at_least_300_programs() -> None:
    assert len(PROGRAMS) >= 300


@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_differs(name: str) -> None:
    assert not differences(PROGRAMS[name]), name
