"""Is a program legal on a chip? The condition lists of the data files, applied.

    refusals(program, chip)        every rule that is broken and known to matter: op or port, fault, who reports it, what to do
    doubts(program, chip)          the same where reports disagree, or nobody has tried it there
    warnings(program, chip)        what may cost time, or is too useful to be kept from what we write ourselves
    require_legal(program, chip)   raises LegalityError with the first few refusals: for programs that are brought
    require_settled(program, chip) and with doubts: for programs that we write, which keep to what is known to work
Reads emitted programs (named constants) and, but for the rules that ask for names, natural ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torchane.chips.chip import Certainty, Chip, Condition, Level, Verdict
from torchane.chips.conditions import OP_CHECKS, PORT_CHECKS, PROGRAM_CHECKS
from torchane.chips.view import ProgramView
from torchane.errors import LegalityError
from torchane.mil.ir import Op, Program, Var
from torchane.mil.types import StateType

_SHOWN = 4


@dataclass(frozen=True)
class Finding:
    """One broken rule. `name` is the op or port as the program calls it, `do` what mends it."""

    name: str
    rule: str
    reason: str
    source: str
    certainty: Certainty
    do: str
    verdict: Verdict
    level: Level = Level.REFUSE

    @property
    def fault(self) -> str:
        """The finding without advice: a program that we write is no user's to change."""
        return f"{self.name}: {self.reason} ({self.source}; {self.certainty.value})."

    def __str__(self) -> str:
        return f"{self.fault} {self.do}."


def refusals(program: Program, chip: Chip) -> tuple[Finding, ...]:
    """Every rule of the chip that the program breaks and that is known to matter, in order of the program."""
    return tuple(found for found in _binding(program, chip) if found.verdict is Verdict.REFUSES)


def doubts(program: Program, chip: Chip) -> tuple[Finding, ...]:
    """Where the program uses what reports on the chip disagree on, or what nobody has tried there."""
    return tuple(found for found in _binding(program, chip) if found.verdict is not Verdict.REFUSES)


def is_settled(op: Op, program: Program, chip: Chip) -> bool:
    """Whether the chip is known to take one op of a program that is still being written: its constants may have no names yet."""
    found = _of_op(ProgramView(program), op, chip)
    return all(one.level is not Level.REFUSE or one.rule == "named_constants" for one in found)


def warnings(program: Program, chip: Chip) -> tuple[Finding, ...]:
    """What may go wrong on the chip and is let through, because reports disagree or only time is lost."""
    return tuple(found for found in _findings(program, chip) if found.level is Level.WARN)


def require_legal(program: Program, chip: Chip) -> None:
    """Raises LegalityError that lists the first few refusals, with what mends them."""
    found = refusals(program, chip)
    _require(found, [str(finding) for finding in found], chip)


def require_settled(program: Program, chip: Chip) -> None:
    """Raises LegalityError that lists the first few refusals and doubts."""
    found = tuple(_binding(program, chip))
    _require(found, [finding.fault for finding in found], chip)


def _require(found: tuple[Finding, ...], texts: list[str], chip: Chip) -> None:
    if found:
        is_refused = any(finding.verdict is Verdict.REFUSES for finding in found)
        what = f"the chip {chip.name} {'does not take' if is_refused else 'is not known to take'} this program"
        lines = [f"  {text}" for text in texts[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"  and {len(found) - _SHOWN} more")
        shown = "\n".join(lines)
        raise LegalityError(f"{what}: {len(found)} {'rule' if len(found) == 1 else 'rules'} broken.\n{shown}")


def _binding(program: Program, chip: Chip) -> Iterator[Finding]:
    return (found for found in _findings(program, chip) if found.level is Level.REFUSE)


def _findings(program: Program, chip: Chip) -> Iterator[Finding]:
    view = ProgramView(program)
    for condition in chip.programs:
        for name, fault in PROGRAM_CHECKS[condition.rule](view, condition.value):
            yield _broken(name, fault, condition, chip)
    states = [var for var in program.inputs if isinstance(var.type, StateType)]
    inputs = [var for var in program.inputs if var not in states]
    held = [Var(var.name, var.type.tensor) for var in states]  # type: ignore[union-attr]
    for what, ports in (("input", inputs), ("state", held), ("output", program.outputs)):
        for port in ports:
            for condition in chip.ports:
                fault = PORT_CHECKS[condition.rule](view, port, condition.value)
                if fault is not None:
                    yield _broken(f"the {what} {port.name}", fault, condition, chip)
    for op in view.computing:
        yield from _of_op(view, op, chip)


def _of_op(view: ProgramView, op: Op, chip: Chip) -> Iterator[Finding]:
    fact = chip.op(op.kind.name)
    if op.blocks:
        reason = f"{op.kind.name} holds ops of its own, and programs have no control flow"
        do = "Unroll it, or leave it to the host"
        yield Finding(op.name, "taken", reason, fact.source, fact.certainty, do, Verdict.REFUSES)
        return
    verdict = chip.verdict(op.kind.name)
    if verdict is not Verdict.TAKES:
        reason = f"{op.kind.name} {_NOT_TAKEN[verdict]}: {fact.why}"
        yield Finding(op.name, "taken", reason, fact.source, fact.certainty, fact.do, verdict)
    if verdict is Verdict.REFUSES:
        return
    for condition in (*chip.every_op, *fact.conditions):
        if condition.rule == "fp16_only" and verdict is not Verdict.TAKES:
            continue  # what bools and indices an op may give is part of what is in doubt
        fault = OP_CHECKS[condition.rule](view, op, condition.value)
        if fault is not None:
            yield _broken(op.name, f"{op.kind.name}: {fault}", condition, chip)


_NOT_TAKEN = {
    Verdict.REFUSES: "is not taken",
    Verdict.DISAGREE: "may not be taken, reports disagree",
    Verdict.UNKNOWN: "may not be taken, nobody has reported on it there",
}


def _broken(name: str, reason: str, condition: Condition, chip: Chip) -> Finding:
    verdict = chip.judges(condition.certainty)
    return Finding(name, condition.rule, reason, condition.source, condition.certainty, condition.do, verdict, condition.level)
