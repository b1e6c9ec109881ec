"""The printed form of every op: one function for each in golden/every_op.mil, a program that is well formed.

A new op needs its function there; the message of the first test says which.
"""

from pathlib import Path

from torchane.mil import check, parse, to_text
from torchane.mil import ops as _ops  # noqa: F401  (fills the op table)
from torchane.mil.kinds import KINDS

GOLDEN = Path(__file__).with_name("golden") / "every_op.mil"


def test_every_op_of_the_table_has_a_printed_form():
    forms = {function.name for function in parse(GOLDEN.read_text()).functions}
    assert forms == KINDS.keys(), f"{GOLDEN.name} needs a function for each of {sorted(KINDS.keys() ^ forms)}"


def test_each_function_shows_the_op_after_which_it_is_named():
    for function in parse(GOLDEN.read_text()).functions:
        assert function.ops[0].kind is KINDS[function.name]


def test_the_printed_forms_are_well_formed():
    check(parse(GOLDEN.read_text(), GOLDEN.name))


def test_the_printed_forms():
    text = GOLDEN.read_text()
    assert to_text(parse(text, GOLDEN.name)) == text
