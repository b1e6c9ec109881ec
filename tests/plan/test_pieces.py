"""Where a group of too many ports is cut."""

import pytest

from torchane.plan.pieces import _even, _period


@pytest.mark.parametrize(
    ("ops", "found"),
    [("xababababababy", (1, 13, 2)), ("abcabcabc", (0, 9, 3)), ("aaaa", (0, 4, 1)), ("abcdefgh", None), ("", None)],
)
def test_the_period_of_a_run(ops: str, found: tuple[int, int, int] | None) -> None:
    assert _period([(op, "") for op in ops]) == found


def test_an_op_is_not_parted_from_its_results() -> None:
    class Never:
        def crossings(self, nodes):
            return [0, *[None] * (len(nodes) - 1), 0]

    assert _even(list("abcdef"), 2, Never()) is None
