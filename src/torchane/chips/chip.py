"""A chip as data: what one generation of the Neural Engine takes, refuses and gets silently wrong.

Every entry says who reports it (`source`) and how sure we are (`certainty`). We have no Mac: nothing here was
seen by us. The data files lie beside this module, one per generation, and `portable`: what is known to
work on several generations and known to fail on none. What a machine's own probe finds overrides them.

Source tags (GDE, MDX, QANE, ...) are explained in SOURCES.md beside the data files.
"""

import enum
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field


class Certainty(enum.Enum):
    """How well an entry is known."""

    SEVERAL = "several"
    """Reported by more than one independent source."""
    ONE = "one"
    """Reported by one source."""
    CONFLICT = "conflict"
    """Sources disagree; the entry is the careful reading."""
    INFERRED = "inferred"
    """Our reading of several reports; nobody states it."""
    UNKNOWN = "unknown"
    """Nobody has reported on it."""


class Verdict(enum.Enum):
    """What a chip does with an op or a form, as far as reports go."""

    TAKES = "takes"
    REFUSES = "refuses"
    """It is reported to fail or to give wrong numbers there, and nobody reports otherwise."""
    DISAGREE = "reports disagree"
    """Some report that it works there, or on other machines or routes, and some that it fails."""
    UNKNOWN = "unknown"
    """Nobody has reported on it there."""


class Level(enum.Enum):
    """What breaking a rule means."""

    REFUSE = "refuse"
    """What we write keeps it. A program that breaks it is refused or doubted, by the entry's certainty (`Chip.judges`)."""
    WARN = "warn"
    """What we write may break it too: it costs time only, or too much would be lost. Said once."""


@dataclass(frozen=True)
class Condition:
    """Under what circumstances an op is taken: `rule` names a check of `conditions.CHECKS`, `value` is its measure."""

    rule: str
    value: object
    level: Level
    certainty: Certainty
    source: str
    do: str


@dataclass(frozen=True)
class OpFact:
    """What is known of one op. `why` and `do` say, for an op that is not taken, what happens and what to write instead."""

    name: str
    is_taken: bool
    certainty: Certainty
    source: str
    why: str
    do: str
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Limit:
    """A number that a program or process may not pass; `value` in `unit`."""

    name: str
    value: int
    unit: str
    level: Level
    certainty: Certainty
    source: str
    do: str


@dataclass(frozen=True)
class Assumption:
    """A setting of the engine's arithmetic, by its path in `torchane.mil.engine.Settings`."""

    name: str
    value: object
    certainty: Certainty
    source: str


@dataclass(frozen=True)
class Chip:
    """One target. `ports` and `programs` are conditions on the signature and on the program as a whole. A strict target
    refuses what is not known to work."""

    name: str
    title: str
    ops: Mapping[str, OpFact]
    every_op: tuple[Condition, ...]
    ports: tuple[Condition, ...]
    programs: tuple[Condition, ...]
    limits: Mapping[str, Limit]
    prefers: Mapping[str, str]
    arithmetic: Mapping[str, Assumption] = field(default_factory=dict)
    is_strict: bool = False

    @property
    def kinds(self) -> frozenset[str]:
        """The ops that are taken, if only under conditions."""
        return frozenset(name for name, fact in self.ops.items() if fact.is_taken)

    def takes(self, kind: str) -> bool:
        return kind in self.kinds

    def verdict(self, kind: str) -> Verdict:
        """What is known of an op, its conditions aside."""
        fact = self.op(kind)
        return Verdict.TAKES if fact.is_taken else self.judges(fact.certainty)

    def judges(self, certainty: Certainty) -> Verdict:
        """What it means to use an op that is not taken, or to break a rule, of an entry of that certainty."""
        if self.is_strict or certainty in (Certainty.SEVERAL, Certainty.ONE):
            return Verdict.REFUSES
        return Verdict.DISAGREE if certainty is Certainty.CONFLICT else Verdict.UNKNOWN

    @property
    def widest_matrix(self) -> int:
        """The longest axis for which no matmul is refused, be it rows, columns or what is summed over."""
        refused = [c.value for c in self.every_op if c.rule == "size_at_most" and c.level is Level.REFUSE]
        sizes = [size for sizes in refused for size in sizes if size]
        return min([*sizes, self.longest_sum or sys.maxsize])

    @property
    def longest_axis(self) -> int:
        """The most entries of each of the last two axes of rank 4 for which no op is refused."""
        refused = [c.value for c in self.every_op if c.rule == "size_at_most" and c.level is Level.REFUSE]
        return min((size for sizes in refused for size in sizes[2:] if size), default=sys.maxsize)

    @property
    def longest_sum(self) -> int | None:
        """The most products that a matmul may add up; None where nothing is known."""
        conditions = self.op("matmul").conditions
        return min((c.value for c in conditions if c.rule == "inner_size_at_most" and c.level is Level.REFUSE), default=None)

    def op(self, kind: str) -> OpFact:
        """What is known of an op; an op that no entry names is not taken."""
        return self.ops.get(kind) or OpFact(
            kind,
            is_taken=False,
            certainty=Certainty.UNKNOWN,
            source="no report",
            why="nobody has reported that it runs there",
            do="Write it in ops that are taken, or leave it to PyTorch on the host",
        )

    def limit(self, name: str) -> int:
        """The value of a limit by its name. Raises KeyError for a name that the data file lacks."""
        return self.limits[name].value
