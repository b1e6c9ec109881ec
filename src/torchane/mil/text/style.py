"""What a text's looks depend on, apart from its program: who writes it.

`APPLE` is how Apple's compiler (coremlc) writes `model.mil`, `KERNEL` how programs for the private compiler
are written, ours among them; `style_of` finds the style of a text, so that one who edits a file by program
changes no more of it than is meant. How scalars are spelled is no style but the dialect: the program's version.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from torchane.mil.ir import Program

#: What stands in `program(...)`.
VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


@dataclass(frozen=True)
class Style:
    """How a program is laid out.

    indent, closing: columns before statements and before the brace that ends a function.
    floats: `hexadecimal` (C's %a); `exact`, a short decimal where it is the number itself, else hexadecimal;
        `shortest`, the shortest decimal that reads back; `fixed` (C's %f) where that reads back, else shortest.
    ending: what follows the last brace.
    equals, comma: in arguments, and between the names of outputs; attribute_equals: in brackets behind an op.
    item_comma: in vectors; size_comma, port_comma: in the shapes of statements and of a function's inputs.
    """

    indent: int
    closing: int
    floats: Literal["hexadecimal", "exact", "shortest", "fixed"]
    ending: str
    equals: str = " = "
    comma: str = ", "
    attribute_equals: str = " = "
    item_comma: str = ", "
    size_comma: str = ", "
    port_comma: str = ", "


#: Every float in hexadecimal, statements twelve columns in, no newline at the end.
APPLE = Style(indent=12, closing=8, floats="hexadecimal", ending="")

#: Short exact decimals stay decimal, statements eight columns in, a newline at the end.
KERNEL = Style(indent=8, closing=4, floats="exact", ending="\n")


def spells_scalars(program: Program) -> bool:
    """Whether a scalar is written `fp16`, as from version 1.3 on, and not `tensor<fp16, []>`."""
    major, _, minor = program.version.partition(".")
    return (int(major), int(minor or 0)) >= (1, 3)


_STATEMENT = re.compile(r"^( *)(?!func )(?:tensor<|state<|[a-z]+[0-9]* )\S[^\n=]*=", re.MULTILINE)
_CLOSING = re.compile(r"^( *)\} ?->", re.MULTILINE)
_FLOATS = re.compile(r"(?:fp16|fp32)(?:, \[\]>)?\(([-+.0-9eEa-fxp]{1,40})\)")
_FEATURES = {
    "equals": re.compile(r"= ?[a-z_0-9]+\([a-z_]+( ?= ?)"),
    "comma": re.compile(r"= ?[a-z_0-9]+\([a-z_]+ ?= ?[A-Za-z_0-9]+(, ?)"),
    "attribute_equals": re.compile(r"\[name( ?= ?)"),
    "item_comma": re.compile(r"\(\[[^\[\]\n,]{1,40}(, ?)"),
    "size_comma": re.compile(r"^ *tensor<[a-z0-9]+, \[[0-9?]+(, ?)", re.MULTILINE),
    "port_comma": re.compile(r"func [^\n(]*\(tensor<[a-z0-9]+, \[[0-9?]+(, ?)"),
}


def style_of(text: str) -> Style:
    """The style in which a text is written, from the first place where each part of it shows; `KERNEL`'s where
    none does. A text that changes its style on the way is printed in that of its beginning."""
    statement, closing = _STATEMENT.search(text), _CLOSING.search(text)
    found = {name: match.group(1) for name, feature in _FEATURES.items() if (match := feature.search(text))}
    if statement is not None:
        found["indent"] = len(statement.group(1))  # type: ignore[assignment]
    if closing is not None:
        found["closing"] = len(closing.group(1))  # type: ignore[assignment]
    return replace(KERNEL, floats=_spelling(text), ending=text[len(text.rstrip()) :], **found)  # type: ignore[arg-type]


def _spelling(text: str) -> Literal["hexadecimal", "exact", "shortest", "fixed"]:
    """How a text spells its floats, from all the scalars in it."""
    spelled = _FLOATS.findall(text)
    if any(spelling.lstrip("+-").startswith("0x") for spelling in spelled):
        decimals = any(not spelling.lstrip("+-").startswith("0x") for spelling in spelled)
        return "exact" if decimals else "hexadecimal"
    if spelled and all(len(spelling.partition(".")[2]) == 6 for spelling in spelled):
        return "fixed"
    return "exact" if all(_is_a_half(spelling) for spelling in spelled) else "shortest"


def _is_a_half(spelling: str) -> bool:
    """Whether a decimal is a number that fp16 holds, and needs no rounding."""
    try:
        value = float(spelling)
    except ValueError:
        return True  # no number: the parser will say so
    return not math.isfinite(value) or (abs(value) < 2**16 and float(np.float16(value)) == value)
