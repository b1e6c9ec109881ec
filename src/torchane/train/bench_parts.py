"""Where a training step on the twin spends its time    torchane bench train-step --parts

    step ──► forward ─► loss ─► backward ─► clipping ─► optimizer
             └── Plan: staging, dispatches, host calls ──┘
                           └── timed once more, op by op: products, attention, norms, moves, element-wise

Every figure is the median of several steps. Ops are timed in a run of their own of each program, on the surfaces of its last
dispatch; their shares are then taken of the dispatch's seconds. What no part accounts for is Python, PyTorch's autograd and the executor.

A roofline: beside each part stands the least that it could take, its multiply-adds at the machine's peak or its bytes at the speed of memory, both
measured in the same run (bench_peak.py). What comes from the cache may take less than the bytes' time.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torchane import native
from torchane.plan import Dispatch, HostCall, Stage, Unstage
from torchane.runtime.observers import Moment, Observer
from torchane.runtime.twin import TwinProgram

#: The parts of a step, in the order in which a table shows them. attention: a softmax, or products that are one step.
PARTS = ("products", "attention", "norms", "element-wise", "moves", "staging", "host ops", "loss", "clipping", "optimizer", "Python")

_WARMUP = 3

_STAGING = (Stage, Unstage)
_MOVES = {"transpose", "slice_by_index", "slice_by_size", "concat", "split", "tile", "copy", "pad"}

#: Bytes that cross memory for a number, at least: of a gradient in its norm, fp16 in its surface; of a weight in AdamW, which reads weight, gradient and two
#: moments, and writes all but the gradient and the staged fp16 form; of a score in the loss, read twice forward, read and written backward; of a value that is staged.
_CLIPPING, _OPTIMIZER, _LOSS, _STAGED = 2, 28, 16, 6


class PartTimer(Observer):
    """Adds up a step's seconds by part, and the bytes that it moves. `part` times what is outside of plans."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self._executor = native.Executor()
        self._shares: dict[int, tuple[TwinProgram, dict[str, float], Mapping[str, int]]] = {}
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
                _, shares, moved = self._looked_at(run)
                for name, share in shares.items():
                    self.seconds[name] += share * run.time_s
                self.bytes.update(moved)
        elif isinstance(moment.step, HostCall):
            self.seconds["host ops"] += took_s
        elif isinstance(moment.step, _STAGING):
            self.seconds["staging"] += took_s
            copies = moment.step.copies
            self.bytes["staging"] += sum(_STAGED * copy.layout.type.size for copy in copies if not (copy.is_weight or copy.is_kept))

    def _looked_at(self, run: Any) -> tuple[TwinProgram, dict[str, float], Mapping[str, int]]:
        """What part of a program's time its ops take, and what they move, looked at once."""
        program = run.program
        assert isinstance(program, TwinProgram), "parts are the twin's"
        if id(program) not in self._shares:
            began_s = time.perf_counter()
            steps = self._executor.timed_run(program.tape, [b.array for b in run.inputs], [b.array for b in run.outputs])
            seconds: Counter[str] = Counter()
            moved: Counter[str] = Counter()
            for (ops, took_s), size_bytes in zip(steps, program.traffic, strict=True):
                seconds[part_of(ops)] += took_s
                moved[part_of(ops)] += size_bytes
            total_s = seconds.total() or 1.0
            self._shares[id(program)] = program, {name: took_s / total_s for name, took_s in seconds.items()}, moved
            self._began_s += time.perf_counter() - began_s
        return self._shares[id(program)]


def part_of(ops: Sequence[str]) -> str:
    """The part that a step of the twin's tape belongs to, by the MIL ops that it computes at once."""
    if "exp" in ops and "matmul" in ops:
        return "products"  # scores of a slice of a vocabulary, and what a loss reads of them
    if "softmax" in ops or list(ops).count("matmul") > 1:
        return "attention"
    if "matmul" in ops or "conv" in ops:
        return "products"
    if any(op.startswith("reduce") for op in ops):
        return "norms"
    return "moves" if all(op in _MOVES for op in ops) else "element-wise"


def measure_parts(step: Callable[[], float], timer: PartTimer, steps: int) -> dict[str, dict[str, float]]:
    """By part, and for the whole: `ms`, median milliseconds, and `mb`, megabytes moved by plans. step: runs one, observed by `timer`. Some run first:
    ops are timed in them, and the first forwards look at more than later ones."""
    for _ in range(_WARMUP):
        step()
    taken: list[dict[str, float]] = []
    for _ in range(steps):
        timer.seconds.clear()
        timer.bytes.clear()
        began_s = time.perf_counter()
        step()
        whole_s = time.perf_counter() - began_s
        taken.append({**timer.seconds, "Python": max(0.0, whole_s - timer.seconds.total()), "whole": whole_s})
    return {
        name: {"ms": statistics.median(one.get(name, 0.0) for one in taken) * 1e3, "mb": timer.bytes[name] / 1e6} for name in (*PARTS, "whole")
    }


def with_floors(
    parts: Mapping[str, Mapping[str, float]], *, macs: int, parameters: int, scores: int, flops: float, bytes_per_s: float
) -> dict[str, dict[str, float]]:
    """The parts with `floor_ms`, the least that each could take where that is known. scores: of all tokens over the vocabulary, 0 where the loss is
    computed in slices. flops, bytes_per_s: the machine's."""
    moved = {"clipping": _CLIPPING * parameters, "optimizer": _OPTIMIZER * parameters, "loss": _LOSS * scores}
    found = {}
    for name, part in parts.items():
        size_bytes = moved.get(name, part["mb"] * 1e6)
        floor_s = 2 * macs / flops if name == "products" else size_bytes / bytes_per_s
        found[name] = {**part, "mb": size_bytes / 1e6} | ({"floor_ms": floor_s * 1e3} if floor_s and part["ms"] else {})
    return found


def to_table(variant: str, parts: Mapping[str, Mapping[str, float]]) -> str:
    """The parts of one variant as lines of text."""
    whole_ms = parts["whole"]["ms"]
    lines = [f"{variant}: where a step of {whole_ms:.1f} ms goes{'at least':>24}"]
    for name in PARTS:
        ms, floor_ms = parts[name]["ms"], parts[name].get("floor_ms")
        bound = "" if floor_ms is None else f"{floor_ms:>10.1f} ms, {'multiply-adds at the peak' if name == 'products' else 'bytes at the speed of memory'}"
        lines.append(f"  {name:15}{ms:>9.1f} ms {ms / whole_ms:>6.1%}{bound}")
    return "\n".join(lines)
