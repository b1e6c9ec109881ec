"""What a text's looks depend on, apart from its program: who writes it.

`APPLE` is how Apple's compiler (coremlc) writes `model.mil`, `KERNEL` how programs for the private compiler
are written, ours among them. How scalars are spelled is no style but the dialect: the program's version.
"""

import re
from dataclasses import dataclass

from torchane.mil.ir import Program

#: What stands in `program(...)`.
VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


@dataclass(frozen=True)
class Style:
    """Indentation in spaces, how floats are spelled, what ends the text."""

    indent: int
    closing: int
    hexadecimal: bool
    ending: str


#: Every float in hexadecimal, statements twelve columns in, no newline at the end.
APPLE = Style(indent=12, closing=8, hexadecimal=True, ending="")

#: Short exact decimals stay decimal, statements eight columns in, a newline at the end.
KERNEL = Style(indent=8, closing=4, hexadecimal=False, ending="\n")


def spells_scalars(program: Program) -> bool:
    """Whether a scalar is written `fp16`, as from version 1.3 on, and not `tensor<fp16, []>`."""
    major, _, minor = program.version.partition(".")
    return (int(major), int(minor or 0)) >= (1, 3)
