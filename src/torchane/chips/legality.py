"""Is a program legal on a chip? The condition lists of the data files, applied.

    refusals(program, chip)      every rule that is broken: op or port, fault, who reports it, what to do
    warnings(program, chip)      the same for what reports disagree on, or what only costs time
    require_legal(program, chip) raises LegalityError with the first few
Reads emitted programs (named constants) and, but for the rules that ask for names, natural ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torchane.chips.chip import Certainty, Chip, Condition, Level
from torchane.chips.conditions import OP_CHECKS, PORT_CHECKS, PROGRAM_CHECKS
from torchane.chips.view import ProgramView
from torchane.errors import LegalityError
from torchane.mil.ir import Op, Program

_SHOWN = 4


@dataclass(frozen=True)
class Refusal:
    """One broken rule. `name` is the op or port as the program calls it, `do` what mends it."""

    name: str
    rule: str
    reason: str
    source: str
    certainty: Certainty
    do: str
    level: Level = Level.REFUSE

    def __str__(self) -> str:
        return f"{self.name}: {self.reason} ({self.source}; {self.certainty.value}). {self.do}."


def refusals(program: Program, chip: Chip) -> tuple[Refusal, ...]:
    """Every rule of the chip that the program breaks, in order of the program."""
    return tuple(found for found in _findings(program, chip) if found.level is Level.REFUSE)


def warnings(program: Program, chip: Chip) -> tuple[Refusal, ...]:
    """What may go wrong on the chip and is let through, because reports disagree or only time is lost."""
    return tuple(found for found in _findings(program, chip) if found.level is Level.WARN)


def require_legal(program: Program, chip: Chip) -> None:
    """Raises LegalityError that lists the first few broken rules."""
    found = refusals(program, chip)
    if found:
        lines = [f"  {refusal}" for refusal in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"  and {len(found) - _SHOWN} more")
        shown = "\n".join(lines)
        raise LegalityError(f"the chip {chip.name} does not take this program: {len(found)} rules broken.\n{shown}")


def _findings(program: Program, chip: Chip) -> Iterator[Refusal]:
    view = ProgramView(program)
    for condition in chip.programs:
        for name, fault in PROGRAM_CHECKS[condition.rule](view, condition.value):
            yield _refusal(name, fault, condition)
    for what, ports in (("input", program.inputs), ("output", program.outputs)):
        for port in ports:
            for condition in chip.ports:
                fault = PORT_CHECKS[condition.rule](view, port, condition.value)
                if fault is not None:
                    yield _refusal(f"the {what} {port.name}", fault, condition)
    for op in view.computing:
        yield from _of_op(view, op, chip)


def _of_op(view: ProgramView, op: Op, chip: Chip) -> Iterator[Refusal]:
    fact = chip.op(op.kind.name)
    if op.blocks:
        reason = f"{op.kind.name} holds ops of its own, and programs have no control flow"
        yield Refusal(op.name, "taken", reason, fact.source, fact.certainty, "Unroll it, or leave it to the host")
        return
    if not fact.is_taken:
        yield Refusal(op.name, "taken", f"{op.kind.name} is not taken: {fact.why}", fact.source, fact.certainty, fact.do)
        return
    for condition in (*chip.every_op, *fact.conditions):
        fault = OP_CHECKS[condition.rule](view, op, condition.value)
        if fault is not None:
            yield _refusal(op.name, f"{op.kind.name}: {fault}", condition)


def _refusal(name: str, reason: str, condition: Condition) -> Refusal:
    return Refusal(name, condition.rule, reason, condition.source, condition.certainty, condition.do, condition.level)
