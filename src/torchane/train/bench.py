"""How long does one training step take, compared with PyTorch?    torchane bench train-step

Fixed: the preset's batch and sequence length, random tokens, seed 0. Every variant is a process of its
own. All warm up; then rounds go through all variants in turn, a few steps each, so that a noisy
moment of the machine falls on all of them. Median and 10th to 90th percentile of the steps by the clock; beside
it the median of the processor's time, all threads together, which other programs' work does not lengthen.

    ratios   how many times as fast as PyTorch's best variant, round by round: median, least and most
    peak     the fastest product of matrices that fit the cache, in this process, between the rounds: what a step's multiply-adds are a share of
    losses   step by step those of PyTorch in fp32, within 1 %: else nothing is reported, for something else was computed
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torchane import native
from torchane.capture.torch_private import has_cpp_compiler
from torchane.errors import NumericsError, TorchaneError, UsageError
from torchane.models.presets import preset
from torchane.runtime.devices import open_device
from torchane.train import bench_parts
from torchane.train.bench_peak import Peak
from torchane.train.bench_worker import VARIANTS, Work, describe
from torchane.train.provenance import provenance

Said = Callable[[str], None]


class BenchError(TorchaneError):
    """A variant's process ended before its answer."""


@dataclass
class Process:
    """A running variant and what it has told."""

    work: Work
    handle: subprocess.Popen[str]
    first_step_s: float = 0.0
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
        except (BrokenPipeError, ValueError) as error:  # killed, perhaps for its memory
            self.handle.wait()
            raise BenchError(f"its process ended with code {self.handle.returncode}") from error
        if "error" in answer:
            raise BenchError(answer["error"].splitlines()[0])
        if "losses" in answer:
            self.losses += answer["losses"]
            self.peak_memory_bytes, self.macs = answer["peak_memory_bytes"], answer["macs"]
        return answer

    def time(self, steps: int) -> None:
        """The same, and the times are kept."""
        answer = self.ask(steps)
        self.times_s += answer["times_s"]
        self.cpu_times_s += answer["cpu_times_s"]
        self.round_ms.append(statistics.median(answer["times_s"]) * 1e3)

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
            "first_step_s": self.first_step_s,
            "peak_memory_bytes": self.peak_memory_bytes,
            "last_loss": self.losses[-1],
            "macs": self.macs or None,
            "share_of_peak": 2 * self.macs / median_s / peak_flops if self.macs else None,
        }


def bench_train_step(
    name: str,
    *,
    variants: Sequence[str],
    batch_size: int | None = None,
    seq_len: int | None = None,
    threads: int | None = None,
    warmup: int = 3,
    rounds: int = 5,
    steps: int = 4,
    parts: bool = False,
    said: Said = lambda text: None,
) -> dict[str, Any]:
    """Measures rounds x steps steps of every variant; gives conditions and results as JSON takes them.
    parts: also where the twin's time goes. Raises UsageError for an unknown preset or variant, DeviceError for a device that is not
    there, NumericsError where losses part. A variant of PyTorch that cannot run is listed with the reason.
    """
    require_variants(variants)
    training = preset(name).training
    sizes = (batch_size or training.batch_size, seq_len or training.seq_len, threads or os.cpu_count() or 1)
    peak = Peak(sizes[2])
    where: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        running, skipped = _warm([Work(variant, name, *sizes) for variant in variants], warmup, stack, said)
        for turn in range(rounds):
            said(f"round {turn + 1} of {rounds}")
            for process in running[turn % max(1, len(running)) :] + running[: turn % max(1, len(running))]:
                process.time(steps)
            peak.measure()
        require_equal_losses(running)
        for process in running if parts else ():
            if process.work.variant.startswith("twin"):
                process.handle.kill()  # a second model beside the first would have other memory
                where[process.work.variant] = start(process.work, stack).ask(f"parts {steps}")["parts_ms"]
    return {
        "question": "How long does one training step take?",
        "preset": name,
        "batch_size": sizes[0],
        "seq_len": sizes[1],
        "threads": sizes[2],
        "isa": native.get_isa() if native.is_built() else None,
        "warmup_steps": warmup,
        "rounds": rounds,
        "steps_per_round": steps,
        **provenance(),
        "peak_gflops": peak.to_dict(),
        "ratios": ratios(running),
        **({"parts_ms": where} if parts else {}),
        "results": [process.result(peak.of(process.work.variant)) for process in running] + skipped,
    }


def require_variants(variants: Sequence[str]) -> None:
    """Raises UsageError for a variant that is none, DeviceError for a device that is not there."""
    known = [variant.name for variant in VARIANTS]
    if unknown := [variant for variant in variants if variant not in known]:
        raise UsageError(f"There is no variant {', '.join(unknown)}. The variants are {', '.join(known)}.")
    for variant in VARIANTS:
        if variant.name in variants and variant.device is not None:
            open_device(variant.device, variant.arithmetic)


def _warm(works: Sequence[Work], warmup: int, stack: ExitStack, said: Said) -> tuple[list[Process], list[dict[str, Any]]]:
    """A process for each, after its first steps; and those that cannot run, with the reason."""
    running: list[Process] = []
    skipped: list[dict[str, Any]] = []
    for work in works:
        if reason := why_not(work.variant):
            skipped.append({"variant": work.variant, "skipped": reason})
            continue
        said(f"{work.variant}: starting")
        process = start(work, stack)
        try:
            process.first_step_s = process.ask(1)["times_s"][0]
            process.ask(max(0, warmup - 1))
        except BenchError as error:
            skipped.append({"variant": work.variant, "skipped": str(error)})
            continue
        running.append(process)
    return running, skipped


#: What a variant of ours is called in a ratio.
_ARITHMETIC = {"twin": "exact", "twin-fast": "fast", "ane": "ane"}
LARGEST_GAP = 0.01


def ratios(running: Sequence[Process]) -> dict[str, dict[str, Any]]:
    """How many times as fast as PyTorch's best variant ours are: of each round the quotient of the medians."""
    theirs = [process for process in running if process.work.variant not in _ARITHMETIC]
    if not theirs:
        return {}
    best = min(theirs, key=lambda process: statistics.median(process.times_s))
    found = {}
    for process in running:
        if name := _ARITHMETIC.get(process.work.variant):
            rounds = [their / our for our, their in zip(process.round_ms, best.round_ms, strict=True)]
            found[f"{name}/best-torch"] = {
                "median": statistics.median(rounds), "least": min(rounds), "most": max(rounds), "torch": best.work.variant
            }  # fmt: skip
    return found


def require_equal_losses(running: Sequence[Process]) -> None:
    """Raises NumericsError where a loss of ours is further than 1 % from PyTorch's of the same step: fp32's, where that was measured."""
    theirs = sorted((process for process in running if process.work.variant not in _ARITHMETIC), key=lambda p: not p.work.variant.endswith("fp32"))
    for process in running if theirs else ():
        if process.work.variant not in _ARITHMETIC:
            continue
        for step, (our, their) in enumerate(zip(process.losses, theirs[0].losses)):
            if not abs(our - their) <= LARGEST_GAP * abs(their):
                raise NumericsError(
                    f"{process.work.variant}: the loss of step {step} is {our:.6g}, and {theirs[0].work.variant} has {their:.6g}: more than "
                    f"{LARGEST_GAP:.0%} apart, so that their times cannot be compared. Please report it with the command."
                )


def start(work: Work, stack: ExitStack) -> Process:
    """A process that builds its model while we wait for its first answer; it ends with the stack."""
    command = [sys.executable, "-m", "torchane.train.bench_worker", describe(work)]
    handle = stack.enter_context(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    )
    stack.callback(handle.kill)
    return Process(work, handle)


def why_not(variant: str) -> str | None:
    """Why a variant cannot run here; None if it can be tried."""
    if variant.startswith("inductor"):
        if not has_cpp_compiler():
            return "torch.compile needs a C++ compiler, and there is none"
    return None


def to_table(report: dict[str, Any]) -> str:
    """The results as lines of text."""
    lines = [
        f"{report['preset']}: batch {report['batch_size']} x {report['seq_len']} tokens, {report['threads']} threads",
        f"torch {report['torch']} on {report['platform']}",
        f"{'':15}{'tokens/s':>10}{'ms':>10}{'10-90 %':>18}{'CPU ms':>10}{'peak MB':>10}{'first step':>12}{'of peak':>9}",
    ]
    for result in report["results"]:
        if "skipped" in result:
            lines.append(f"{result['variant']:15}skipped: {result['skipped']}")
            continue
        spread = f"{result['ms_p10']:.1f}-{result['ms_p90']:.1f}"
        lines.append(
            f"{result['variant']:15}{result['tokens_per_s']:>10,.0f}{result['ms_median']:>10.1f}{spread:>18}"
            f"{result['cpu_ms_median']:>10.1f}{result['peak_memory_bytes'] / 1e6:>10,.0f}{result['first_step_s']:>10.1f} s"
            + (f"{result['share_of_peak']:>9.0%}" if result["share_of_peak"] else "")
        )
    for name, ratio in report["ratios"].items():
        lines.append(f"{name}: {ratio['median']:.2f} times as fast as {ratio['torch']} ({ratio['least']:.2f} to {ratio['most']:.2f} by round)")
    peaks = ", ".join(f"{kind} {gflops:,.0f}" for kind, gflops in report["peak_gflops"].items())
    lines.append(f"products from the cache, GFLOP/s at most: {peaks}")
    lines += [bench_parts.to_table(variant, parts) for variant, parts in report.get("parts_ms", {}).items()]
    return "\n".join(lines)
