"""Which power of two every value of a range-controlled program is stored under: the data that pass and runtime share.

    stored = true * 2^exponent          exponent = a sum of variables: {i3: 1, v0: 1}

`i3` is the exponent of input 3, known when a program is dispatched; `v0` is one that the runtime chooses there. A
`Form` is such a sum. A program's Ranges say which forms its multipliers and outputs have, where magnitudes are
read, and what each variable must heed. Nothing here holds a tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torchane.abi.ports import LAST_AXIS_MULTIPLE
from torchane.mil.types import FP16, TensorType


@dataclass(frozen=True)
class Form:
    """A sum of variables with whole coefficients; none of them 0."""

    terms: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, terms: Mapping[str, int]) -> "Form":
        return cls(tuple(sorted((name, count) for name, count in terms.items() if count)))

    @classmethod
    def var(cls, name: str) -> "Form":
        return cls(((name, 1),))

    def __add__(self, other: "Form") -> "Form":
        total = dict(self.terms)
        for name, count in other.terms:
            total[name] = total.get(name, 0) + count
        return Form.of(total)

    def __neg__(self) -> "Form":
        return Form(tuple((name, -count) for name, count in self.terms))

    def __sub__(self, other: "Form") -> "Form":
        return self + -other

    def coefficient(self, name: str) -> int:
        return dict(self.terms).get(name, 0)

    def without(self, name: str) -> "Form":
        return Form(tuple(term for term in self.terms if term[0] != name))

    def at(self, values: Mapping[str, int]) -> int:
        return sum(count * values[name] for name, count in self.terms)

    def replacing(self, known: Mapping[str, "Form"]) -> "Form":
        """With variables replaced by what they are equal to, as often as that goes on."""
        form = self
        while name := next((name for name, _ in form.terms if name in known), None):
            count, form = form.coefficient(name), form.without(name)
            for _ in range(abs(count)):
                form = form + known[name] if count > 0 else form - known[name]
        return form

    def __str__(self) -> str:
        return " + ".join(f"{count} {name}" if count != 1 else name for name, count in self.terms) or "0"


UNSCALED = Form()

#: Where a sum of products, and any other value, is no longer a number: the ceilings of bounds, as powers of two.
SUM_END, VALUE_END = 15, 16


@dataclass(frozen=True)
class Inputs:
    """What is known of a program's inputs, by name. unscaled: stored as they are, of which the `static` come from no tensor
    that a program computed (masks, tables). gradients: linear in the gradient that came in. constants: that will be constants of the program, which the runtime scales once."""

    unscaled: frozenset[str] = frozenset()
    static: frozenset[str] = frozenset()
    gradients: frozenset[str] = frozenset()
    constants: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Measure:
    """Where the largest magnitude of a value can be read after a run: an output, or a row of the statistics port;
    "input" is known before. form: what the value read is stored under."""

    place: Literal["input", "output", "row"]
    index: int
    form: Form


@dataclass(frozen=True)
class Bound:
    """The value of a measure, under `form`, should have a largest magnitude of at most 2^target, and must stay below
    2^ceiling, where it is an infinity. `knob`: the variable that brings it there, the last of the form, if it has one.
    guess: of a product before its first run: the measures of its operands (-1: at most 1), and digits for its sum."""

    measure: int
    form: Form
    target: int
    ceiling: int
    knob: str | None
    what: str
    guess: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Ranges:
    """What the runtime must know of one program. `multipliers`: the forms of the rows of the multiplier port, its last
    input. `rows` of the statistics port, its last output, which is absent where there are none."""

    variables: tuple[str, ...]
    multipliers: tuple[Form, ...]
    outputs: tuple[Form, ...]
    measures: tuple[Measure, ...]
    bounds: tuple[Bound, ...]
    rows: int

    @property
    def multiplier_type(self) -> TensorType:
        return port_type(len(self.multipliers))

    @property
    def statistics_type(self) -> TensorType:
        return port_type(self.rows)


def port_type(rows: int) -> TensorType:
    """A port with one number a row, repeated along it: rows shorter than 64 bytes are not to be trusted."""
    return TensorType(FP16, (1, max(1, rows), 1, LAST_AXIS_MULTIPLE))
