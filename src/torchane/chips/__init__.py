"""What each generation of the Neural Engine accepts, refuses, gets silently wrong, and what work costs there.

    chip = load("m4")                      one data file per generation; `portable` is the safe intersection
    chip.op("softmax")                     what is known of an op, with sources
    arithmetic_of(chip)                    its assumptions about the engine's arithmetic
    require_legal(program, chip)           raises LegalityError where the chip would refuse
"""

from torchane.chips.arithmetic import arithmetic_of
from torchane.chips.chip import Assumption, Certainty, Chip, Condition, Level, Limit, OpFact, Quantity
from torchane.chips.legality import Refusal, refusals, require_legal, warnings
from torchane.chips.load import DEFAULT, load, names

__all__ = [
    "DEFAULT", "Assumption", "Certainty", "Chip", "Condition", "Level", "Limit", "OpFact", "Quantity", "Refusal",
    "arithmetic_of", "load", "names", "refusals", "require_legal", "warnings",
]  # fmt: skip
