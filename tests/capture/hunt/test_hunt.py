"""Small programs beside eager float32: nothing differs in silence."""

import programs_graphs  # noqa: F401  (fills the catalogue)
import programs_ops  # noqa: F401
import pytest
from hunting import PROGRAMS, differences

pytestmark = pytest.mark.long

#: What differs and is known to, each with the reason.
KNOWN = {
    "move: unfold": "torch's own: AOTAutograd's gradient of overlapping windows is wrong with backend='aot_eager' as well",
    "move: vander": "torch's own: eager's backward of vander ends in an error about an in-place operation",
}


def test_there_are_at_least_300_programs() -> None:
    assert len(PROGRAMS) >= 300


def test_what_is_known_is_in_the_catalogue() -> None:
    assert PROGRAMS.keys() >= KNOWN.keys()


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in KNOWN])
def test_nothing_differs(name: str) -> None:
    assert not differences(PROGRAMS[name]), name
