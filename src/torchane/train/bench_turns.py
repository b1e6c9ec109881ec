"""In which order variants are timed, and who is in memory meanwhile.    See bench.py.

    PyTorch's variants start and warm up ──► ours ──► rounds: all that are left, a few steps each in turn
        └ one that is far slower than the best is timed at once and ends; so does the slowest where memory has no room for the next
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from torchane.capture.torch_private import has_cpp_compiler
from torchane.plan.memory import free_bytes
from torchane.train.bench_process import BenchError, Process, start
from torchane.train.bench_worker import Work, variant_of

#: A variant of PyTorch's whose step takes so many times as long as its fastest one's cannot be the best by the noise of a moment.
FAR_SLOWER = 1.5
#: Of what a process has taken at most: compiling another variant takes more.
_ROOM = 1.2


@dataclass
class Turns:
    """Times variants. references: whose losses are compared, besides ours."""

    warmup: int
    rounds: int
    steps: int
    references: Sequence[str]
    said: Callable[[str], None]
    between: Callable[[], None] = lambda: None  #: called between the rounds
    timed: list[Process] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    _running: list[Process] = field(default_factory=list)

    def take(self, works: Sequence[Work], stack: ExitStack) -> None:
        """Every variant, timed or skipped with the reason. Processes end with the stack."""
        for number, work in enumerate(sorted(works, key=lambda one: variant_of(one.variant).device is not None), 1):
            if reason := why_not(work.variant):
                self.skipped[work.variant] = reason
                continue
            self._make_room()
            self.said(f"{work.variant}: starting, {number} of {len(works)}")
            process = start(work, stack)
            try:
                process.warm_up(self.warmup)
            except BenchError as error:
                process.end()
                self.skipped[work.variant] = str(error)
                continue
            self.said(f"{work.variant}: the first step took {process.first_step_s:.1f} s" + (f", another {process.warm_s * 1e3:,.0f} ms" if self.warmup > 1 else ""))
            self._running.append(process)
            self._drop_far_slower()
        self._go_round()

    def _go_round(self) -> None:
        for turn in range(self.rounds):
            first = turn % max(1, len(self._running))
            for process in self._running[first:] + self._running[:first]:
                try:
                    process.time(self.steps)
                except BenchError as error:
                    self._running.remove(process)
                    self.skipped[process.work.variant] = f"in round {turn + 1}: {error}"
            self.between()
            self.said(f"round {turn + 1} of {self.rounds}: " + ", ".join(f"{one.work.variant} {one.round_ms[-1]:,.1f} ms" for one in self._running))
        for process in list(self._running):
            self._end(process)

    def _drop_far_slower(self) -> None:
        """Once more than the first step is known of them; by the clock and by the processor's time, of which either alone may be chance."""
        theirs = [process for process in self._running if variant_of(process.work.variant).device is None]
        for process in theirs if self.warmup > 1 else ():
            if any(process.warm_s > FAR_SLOWER * one.warm_s and process.warm_cpu_s > FAR_SLOWER * one.warm_cpu_s for one in theirs):
                self._end_alone(process, 1, "far slower than PyTorch's best")

    def _make_room(self) -> None:
        free = free_bytes()
        while free is not None and self._running and free < _ROOM * max(one.peak_memory_bytes for one in (*self.timed, *self._running)):
            self._end_alone(max(self._running, key=lambda one: one.warm_s), self.rounds, "memory has no room for the next beside it")
            free = free_bytes()

    def _end_alone(self, process: Process, rounds: int, why: str) -> None:
        self.said(f"{process.work.variant}: timed by itself, {why}")
        process.in_turns = False
        for _ in range(rounds):
            process.time(self.steps)
            self.between()
        self._end(process)

    def _end(self, process: Process) -> None:
        if process.work.variant in self.references or variant_of(process.work.variant).device is not None:
            process.complete_losses()
        process.end()
        self._running.remove(process)
        self.timed.append(process)


def best_of_pytorch(timed: Sequence[Process]) -> Process | None:
    """The fastest by the median of its steps."""
    theirs = [process for process in timed if variant_of(process.work.variant).device is None]
    return min(theirs, key=lambda process: statistics.median(process.times_s), default=None)


def why_not(variant: str) -> str | None:
    """Why a variant cannot run here; None if it can be tried."""
    if variant_of(variant).mode is not None and not has_cpp_compiler():
        return "torch.compile needs a C++ compiler, and there is none"
    return None
