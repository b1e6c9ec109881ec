"""What each generation of the Neural Engine accepts, refuses, gets silently wrong, and what others measured on it.

    chip = load("m4")                      one data file per generation; `portable` is the safe intersection
    chip.op("softmax")                     what is known of an op, with sources
    probed(chip, wrong)                    the same, as the doctor of one machine found it
    arithmetic_of(chip)                    its assumptions about the engine's arithmetic
    chip.verdict("concat")                 takes, refuses, reports disagree, unknown
    require_legal(program, chip)           raises LegalityError where the chip would refuse
    points.points(), points.machine("m4max")   published measurements, and the machines they were taken on
    require_settled(program, chip)         and where reports disagree or are missing: for what we write ourselves
"""

from torchane.chips.arithmetic import arithmetic_of
from torchane.chips.chip import Assumption, Certainty, Chip, Condition, Level, Limit, OpFact, Verdict
from torchane.chips.legality import Finding, doubts, is_settled, refusals, require_legal, require_settled, warnings
from torchane.chips.load import DEFAULT, load, names, of_machine, probed

__all__ = [
    "DEFAULT", "Assumption", "Certainty", "Chip", "Condition", "Finding", "Level", "Limit", "OpFact",
    "Verdict", "arithmetic_of", "doubts", "is_settled", "load", "names", "of_machine", "probed", "refusals", "require_legal", "require_settled", "warnings",
]  # fmt: skip
