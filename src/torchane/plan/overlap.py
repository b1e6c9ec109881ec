"""Which work of the host goes on while a dispatch runs.

    plan       D0  unstage gradients of D0  stage weights of D1  D1  ..
    beside     D0 [stage weights of D1]     D1 [unstage gradients of D0]  ..        [ ]: the host, while the engine runs

A step may go on beside a dispatch if it shares no surface with it and reads no value that waits for it. What stages, and makes weights for it of
what is kept in few bits, is moved ahead; what unstages gradients is put off by one dispatch. Steps of the host keep their order but for
that: no step that draws random numbers or writes in place is moved, and what leaves a forward, which may send it to float32, is looked at before
the next dispatch. So results have the same bits. Runtime and prices take the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torchane.plan.plan import Dispatch, HostCall, Plan, Stage, Step, Unstage, surfaces_of

#: fp16 bytes that are worth a thread for the dispatch, which takes the processor some 60 us: 4 MiB are staged in as long.
LEAST_BYTES = 1 << 22


@dataclass(frozen=True)
class Turn:
    """A step of a plan, by its index; beside a dispatch, those that go on meanwhile, in their order."""

    step: int
    beside: tuple[int, ...] = ()


def one_by_one(plan: Plan) -> tuple[Turn, ...]:
    """For a device that computes on the host's own processor: the plan's own order."""
    return tuple(map(Turn, range(len(plan.steps))))


def overlapped(plan: Plan) -> tuple[Turn, ...]:
    """For a device that leaves the processor to the host while it runs. Every step has one turn, or goes on beside one."""
    at = [index for index, step in enumerate(plan.steps) if isinstance(step, Dispatch)]
    turns: list[Turn] = []
    waiting = list(range(at[0] if at else len(plan.steps)))  # steps before the next dispatch that do not go on beside the last one
    for index, following in zip(at, [*at[1:], len(plan.steps)]):
        rest = range(index + 1, following)
        put_off, ahead = _put_off(plan, index, waiting) if plan.is_backward else [], _ahead(plan, index, rest)
        beside = (*put_off, *ahead)
        if moved_bytes(plan, beside) < LEAST_BYTES:
            beside = ()
        turns += [*(Turn(i) for i in waiting if i not in beside), Turn(index, beside)]
        waiting = [i for i in rest if i not in beside]
    return (*turns, *map(Turn, waiting))


def moved_bytes(plan: Plan, indices: Sequence[int]) -> int:
    """fp16 bytes that the host writes into surfaces or reads from them in these steps."""
    copies = (copy for i in indices if isinstance(step := plan.steps[i], Stage | Unstage) for copy in step.copies)
    return sum(copy.layout.type.size_bytes for copy in copies if not copy.is_constant)


def _ahead(plan: Plan, dispatch: int, rest: Sequence[int]) -> list[int]:
    """Of the steps between this dispatch and the next those that need not wait for it: they pass what unstages, and nothing else."""
    busy, late = set(surfaces_of(plan.steps[dispatch])), set()
    found = []
    for index in rest:
        step = plan.steps[index]
        may = isinstance(step, Stage) or (isinstance(step, HostCall) and step.makes_weights)
        if may and not busy.intersection(surfaces_of(step)) and not late.intersection(_reads(step)):
            found.append(index)
        elif isinstance(step, Unstage):
            late |= _writes(step)
            busy |= set(surfaces_of(step))
        else:
            break
    return found


def _put_off(plan: Plan, following: int, waiting: Sequence[int]) -> list[int]:
    """Of the steps between the last dispatch and `following` those that may go on beside it: the last ones that unstage."""
    busy = set(surfaces_of(plan.steps[following]))
    read: set[str] = set()
    found: list[int] = []
    for index in reversed(waiting):
        step = plan.steps[index]
        if isinstance(step, Unstage):
            if busy.intersection(surfaces_of(step)) or read & _writes(step):
                break
            found.insert(0, index)
        else:
            read |= _reads(step)
            busy |= set(surfaces_of(step))
    return found


def _reads(step: Step) -> set[str]:
    """Values of the host."""
    if isinstance(step, HostCall):
        return set(step.inputs)
    return {copy.value for copy in step.copies} if isinstance(step, Stage) else set()


def _writes(step: Unstage) -> set[str]:
    return {name for copy in step.copies for name in (copy.value, *((copy.part.whole,) if copy.part else ()))}
