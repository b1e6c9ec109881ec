"""A variant's process as the benchmark sees it: started, asked for steps, ended.    See bench.py and bench_worker.py."""

import json
import math
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torchane.errors import TorchaneError
from torchane.train.bench_worker import Work, describe

#: Steps whose losses are compared.
COMPARED_STEPS = 20


class BenchError(TorchaneError):
    """A variant's process ended before its answer."""


@dataclass
class Process:
    """A running variant and what it has told. warm_s, warm_cpu_s: its fastest step before the timed ones. in_turns: its rounds were those of the others."""

    work: Work
    handle: subprocess.Popen[str]
    first_step_s: float = 0.0
    warm_s: float = 0.0
    warm_cpu_s: float = 0.0
    in_turns: bool = True
    times_s: list[float] = field(default_factory=list)
    round_ms: list[float] = field(default_factory=list)
    cpu_times_s: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    macs: int = 0
    peak_memory_bytes: int = 0

    def ask(self, steps: int | str) -> dict[str, Any]:
        """Runs so many steps and gives what they took, or what else is asked for. Raises BenchError with what went wrong there."""
        assert self.handle.stdin is not None and self.handle.stdout is not None
        try:
            self.handle.stdin.write(f"{steps}\n")
            self.handle.stdin.flush()
            answer = json.loads(self.handle.stdout.readline())
        except (BrokenPipeError, ValueError) as error:
            self.handle.wait()
            killed = ": it was killed, perhaps for want of memory" if self.handle.returncode == -9 else ""
            raise BenchError(f"its process ended with code {self.handle.returncode}{killed}") from error
        if "error" in answer:
            raise BenchError(answer["error"].splitlines()[0])
        if "losses" in answer:
            self.losses += answer["losses"]
            self.peak_memory_bytes, self.macs = answer["peak_memory_bytes"], answer["macs"]
        return answer

    def warm_up(self, steps: int) -> None:
        """The first step, which compiles, and others."""
        answer = self.ask(1)
        self.first_step_s = answer["times_s"][0]
        if steps > 1:
            answer = self.ask(steps - 1)
        self.warm_s, self.warm_cpu_s = min(answer["times_s"]), min(answer["cpu_times_s"])

    def time(self, steps: int) -> None:
        """Runs so many steps, and their times are kept."""
        answer = self.ask(steps)
        self.times_s += answer["times_s"]
        self.cpu_times_s += answer["cpu_times_s"]
        self.round_ms.append(statistics.median(answer["times_s"]) * 1e3)

    def complete_losses(self) -> None:
        """Runs what is missing to the losses that are compared."""
        if (missing := COMPARED_STEPS - len(self.losses)) > 0:
            self.ask(missing)

    def end(self) -> None:
        """What it has told stays; its memory goes."""
        self.handle.kill()
        self.handle.wait()

    def result(self, peak_flops: float) -> dict[str, Any]:
        cuts = statistics.quantiles(self.times_s, n=10) if len(self.times_s) > 1 else self.times_s * 9
        median_s = statistics.median(self.times_s)
        return {
            "variant": self.work.variant,
            "tokens_per_s": self.work.batch_size * self.work.seq_len / median_s,
            "ms_median": median_s * 1e3,
            "ms_p10": cuts[0] * 1e3,
            "ms_p90": cuts[-1] * 1e3,
            "cpu_ms_median": statistics.median(self.cpu_times_s) * 1e3,
            "steps": len(self.times_s),
            "in_turns": self.in_turns,
            "first_step_s": self.first_step_s,
            "peak_memory_bytes": self.peak_memory_bytes,
            "last_loss": self.losses[-1] if math.isfinite(self.losses[-1]) else None,
            "macs": self.macs or None,
            "share_of_peak": 2 * self.macs / median_s / peak_flops if self.macs else None,
        }


def start(work: Work, stack: ExitStack) -> Process:
    """A process that builds its model while we wait for its first answer; it ends with the stack."""
    command = [sys.executable, "-m", "torchane.train.bench_worker", describe(work)]
    handle = stack.enter_context(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    )
    stack.callback(handle.kill)
    return Process(work, handle)
