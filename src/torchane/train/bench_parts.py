"""Where a training step on the twin spends its time    torchane bench train-step --parts

    step ──► forward ─► loss ─► backward ─► clipping ─► optimizer
             └── Plan: staging, dispatches, host calls ──┘
                           └── timed once more, op by op: products, attention, softmax, sums, moves, element-wise

Every figure is the median of several steps. Ops are timed in a run of their own of each program, on the surfaces of its last
dispatch; their shares are then taken of the dispatch's seconds. What no part accounts for is Python, PyTorch's autograd and the executor.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torchane import native
from torchane.plan import Copy, Dispatch, HostCall, Stage, Unstage
from torchane.runtime.observers import Moment, Observer
from torchane.runtime.twin import TwinProgram

#: The parts of a step, in the order in which a table shows them.
PARTS = ("products", "attention", "softmax", "sums and norms", "element-wise", "moves", "staging", "host ops", "loss", "clipping", "optimizer", "the rest")

_WARMUP = 3

_STAGING = (Stage, Unstage, Copy)
_MOVES = {"transpose", "slice_by_index", "slice_by_size", "concat", "split", "tile", "copy", "pad"}


class PartTimer(Observer):
    """Adds up a step's seconds by part. `part` times what is outside of plans."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._executor = native.Executor()
        self._shares: dict[int, tuple[TwinProgram, dict[str, float]]] = {}
        self._began_s = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began_s

    def before(self, moment: Moment) -> None:
        self._began_s = time.perf_counter()

    def after(self, moment: Moment) -> None:
        took_s = time.perf_counter() - self._began_s
        if isinstance(moment.step, Dispatch):
            for run in moment.runs:
                for name, share in self._shares_of(run).items():
                    self.seconds[name] += share * run.time_s
        elif isinstance(moment.step, HostCall):
            self.seconds["host ops"] += took_s
        elif isinstance(moment.step, _STAGING):
            self.seconds["staging"] += took_s

    def _shares_of(self, run: Any) -> dict[str, float]:
        """What part of a program's time its ops take, looked at once."""
        program = run.program
        assert isinstance(program, TwinProgram), "parts are the twin's"
        if id(program) not in self._shares:
            began_s = time.perf_counter()
            steps = self._executor.timed_run(program.tape, [b.array for b in run.inputs], [b.array for b in run.outputs])
            seconds: Counter[str] = Counter()
            for ops, took_s in steps:
                seconds[part_of(ops)] += took_s
            total_s = seconds.total() or 1.0
            self._shares[id(program)] = program, {name: took_s / total_s for name, took_s in seconds.items()}
            self._began_s += time.perf_counter() - began_s
        return self._shares[id(program)][1]


def part_of(ops: Sequence[str]) -> str:
    """The part that a step of the twin's tape belongs to, by the MIL ops that it computes at once."""
    if list(ops).count("matmul") > 1:
        return "attention"
    if "matmul" in ops or "conv" in ops:
        return "products"
    if "softmax" in ops:
        return "softmax"
    if any(op.startswith("reduce") for op in ops):
        return "sums and norms"
    return "moves" if all(op in _MOVES for op in ops) else "element-wise"


def measure_parts(step: Callable[[], float], timer: PartTimer, steps: int) -> dict[str, float]:
    """Median milliseconds of every part and of the whole. step: runs one, observed by `timer`. Some run first: ops are timed in them, and
    the first forwards look at more than later ones."""
    for _ in range(_WARMUP):
        step()
    taken: list[dict[str, float]] = []
    for _ in range(steps):
        timer.seconds.clear()
        began_s = time.perf_counter()
        step()
        whole_s = time.perf_counter() - began_s
        taken.append({**timer.seconds, "the rest": max(0.0, whole_s - timer.seconds.total()), "whole": whole_s})
    return {name: statistics.median(one.get(name, 0.0) for one in taken) * 1e3 for name in (*PARTS, "whole")}


def to_table(variant: str, parts: dict[str, float]) -> str:
    """The parts of one variant as lines of text."""
    lines = [f"{variant}: where a step of {parts['whole']:.1f} ms goes"]
    lines += [f"  {name:15}{parts[name]:>9.1f} ms {parts[name] / parts['whole']:>6.1%}" for name in PARTS]
    return "\n".join(lines)
