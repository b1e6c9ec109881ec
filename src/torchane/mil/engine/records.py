"""What is known of each rule: its evidence, where it holds, and what nobody knows."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torchane.mil.engine.settings import Settings
from torchane.mil.evaluate import Rule

#: Gives an op's rule under some settings.
Maker = Callable[[Settings], Rule]


class Evidence(enum.Enum):
    """How a rule is known."""

    PROVEN = "proven"
    """Every output of a capture of a real engine is reproduced."""
    MEASURED = "measured"
    """A study of a real engine states it, with its measurements."""
    PARTLY = "partly"
    """Measured in part; the rest is the natural continuation."""
    ASSUMED = "assumed"
    """No measurement: exact operands, one rounding of the result."""


@dataclass(frozen=True)
class Record:
    """A rule and what stands behind it. `ops` are MIL names; `*` is every other op."""

    ops: tuple[str, ...]
    says: str
    evidence: Evidence
    source: str
    holds: str
    unknown: str


#: Every rule, in the order of their definition.
RECORDS: list[Record] = []
#: By op name, a maker of rules: settings -> Rule.
MAKERS: dict[str, Maker] = {}

RECORDS.append(
    Record(
        ("*",),
        "The exact result for exact operands, rounded once to fp16, halves away from zero",
        Evidence.ASSUMED,
        "by analogy with the element-wise ops",
        "nothing is known that speaks against it",
        "orders and roundings inside reductions, norms and pooling; pow and real_div to the last bit; which ops the "
        "compiler fuses, but for x * sigmoid(x)",
    )
)
RECORDS.append(
    Record(
        ("add", "sub", "mul", "maximum", "minimum", "relu", "abs", "cast"),
        "One operation in ordinary floating point, then fp16, halves away from zero; range and subnormals of fp16",
        Evidence.PROVEN,
        "captures: cast, add, mul by constants and by a reciprocal; 751K for the range, and no table for relu and abs",
        "M4 and M6; values met: 2^-24 to 40000",
        "65504 + 65504 (an infinity is expected); the sign of a zero",
    )
)


def recorded(
    *ops: str, says: str, evidence: Evidence, source: str, holds: str, unknown: str
) -> Callable[[Maker], Maker]:
    """Registers what makes the rule of these ops."""
    RECORDS.append(Record(ops, says, evidence, source, holds, unknown))

    def register(maker: Maker) -> Maker:
        for op in ops:
            assert op not in MAKERS, f"{op} has two rules"
            MAKERS[op] = maker
        return maker

    return register


def record_of(op: str) -> Record:
    """The record that covers an op."""
    return next((record for record in reversed(RECORDS) if op in record.ops), RECORDS[0])


def table() -> str:
    """All records as Markdown."""
    lines = ["| ops | rule | evidence | source | holds | not known |", "|---|---|---|---|---|---|"]
    for r in (*RECORDS[1:], RECORDS[0]):
        name = ", ".join(r.ops) if r.ops != ("*",) else "every other"
        lines.append(f"| {name} | {r.says} | {r.evidence.value} | {r.source} | {r.holds} | {r.unknown} |")
    return "\n".join(lines)


def rules(settings: Settings) -> Mapping[str, Rule]:
    """By op name, the rules under these settings."""
    return {op: maker(settings) for op, maker in MAKERS.items()}
