"""How long does one training step take, compared with PyTorch?    torchane bench train-step

Fixed: the preset's batch and sequence length, random tokens, seed 0, the same batch in every step. Every variant is a process of its own. All warm
up; then rounds go through all variants in turn, a few steps each, so that a noisy moment of the machine falls on all of them (bench_turns.py: who
does not wait for the rounds). Median and 10th to 90th percentile of the steps by the clock; beside it the median of the processor's time, all
threads together, which other programs' work does not lengthen.

    ratios   how many times as fast as PyTorch's best variant, round by round: median, least and most
    peak     the fastest product of matrices that fit the cache, in this process, between the rounds: what a step's multiply-adds are a share of
    losses   of 20 steps, with the same masks of dropout, those of PyTorch within 1 %: else the report says that they part, and the command fails
"""

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torchane import native
from torchane.errors import NumericsError, UsageError
from torchane.models.files import write_json
from torchane.models.presets import preset
from torchane.runtime.devices import open_device
from torchane.train import bench_parts
from torchane.train.bench_peak import Peak
from torchane.train.bench_process import COMPARED_STEPS, Process, start
from torchane.train.bench_turns import Turns, best_of_pytorch
from torchane.train.bench_worker import VARIANTS, Work, draws_masks
from torchane.train.provenance import processor, provenance

Said = Callable[[str], None]

#: What a variant of ours is called in a ratio.
_ARITHMETIC = {"twin": "exact", "twin-fast": "fast", "ane": "ane"}
FAST, AUTOCAST = "twin-fast", "eager-bf16"
LARGEST_GAP = 0.01
#: A variant whose median step took so many times its fastest one was held up by something else, so that ratios with it say little.
UNSTEADY = 1.5


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
    there. A variant of PyTorch that cannot run is listed with the reason. Whether losses part is for `require_alike` to say.
    """
    require_variants(variants)
    training = preset(name).training
    sizes = (batch_size or training.batch_size, seq_len or training.seq_len, threads or os.cpu_count() or 1)
    load = [os.getloadavg()[0]]
    peak = Peak(sizes[2])
    reference = reference_of(variants, draws_masks(name))
    turns = Turns(warmup, rounds, steps, [reference or "", *([AUTOCAST] if FAST in variants else [])], said, peak.measure)
    with ExitStack() as stack:
        turns.take([Work(variant, name, *sizes) for variant in variants], stack)
        gaps, parted = loss_gaps(turns.timed, reference)
        where = {one.work.variant: _parts(one, steps, peak, stack, said) for one in turns.timed if parts and one.work.variant.startswith("twin")}
    by_variant = {process.work.variant: process.result(peak.of(process.work.variant)) for process in turns.timed}
    return {
        "question": "How long does one training step take?",
        "preset": name,
        "batch_size": sizes[0],
        "seq_len": sizes[1],
        "threads": sizes[2],
        "isa": native.get_isa() if native.is_built() else None,
        "masked": masked(os.environ),
        "warmup_steps": warmup,
        "rounds": rounds,
        "steps_per_round": steps,
        **provenance(),
        "processor": processor(),
        "load": [*load, os.getloadavg()[0]],
        "peak_gflops": peak.to_dict(),
        "memory_gb_per_s": peak.bytes_per_s / 1e9,
        "ratios": ratios(turns.timed),
        "losses": {"reference": reference, "steps": COMPARED_STEPS, "largest_gap": gaps, "parted": parted},
        **({"parts": where} if parts else {}),
        "results": [by_variant.get(one) or {"variant": one, "skipped": turns.skipped[one]} for one in variants],
    }


def _parts(process: Process, steps: int, peak: Peak, stack: ExitStack, said: Said) -> dict[str, dict[str, float]]:
    """Of a variant of ours, in a process of its own, since who watches takes time; with the least that each part could take."""
    said(f"{process.work.variant}: its parts, in a run of their own")
    watched = start(process.work, stack)
    answer = watched.ask(f"parts {steps}")
    watched.end()
    return bench_parts.with_floors(
        answer["parts"], macs=process.macs, parameters=answer["parameters"], scores=answer["scores"],
        flops=peak.of(process.work.variant), bytes_per_s=peak.bytes_per_s,
    )  # fmt: skip


#: Variables that keep kernels from instructions of the processor: ours, and those of PyTorch's own, of oneDNN, of MKL.
MASKS = ("TORCHANE_ISA", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


def masked(environment: Mapping[str, str]) -> dict[str, str]:
    """Which of MASKS are set, and to what. Everything that is measured has them, peaks too."""
    return {name: environment[name] for name in MASKS if environment.get(name)}


def masks_line(masks: Mapping[str, str]) -> str:
    missing = [name for name in MASKS if name not in masks]
    line = "instructions that the environment leaves out, in steps and in the peak alike: " + ", ".join(f"{name}={value}" for name, value in masks.items())
    return line + (f". {', '.join(missing)} not set: kernels of the two sides may use different instructions, and the ratios say nothing" if missing else "")


def require_variants(variants: Sequence[str]) -> None:
    """Raises UsageError for a variant that is none, DeviceError for a device that is not there."""
    known = [variant.name for variant in VARIANTS]
    if unknown := [variant for variant in variants if variant not in known]:
        raise UsageError(f"There is no variant {', '.join(unknown)}. The variants are {', '.join(known)}.")
    for variant in VARIANTS:
        if variant.name in variants and variant.device is not None:
            open_device(variant.device, variant.arithmetic)


def reference_of(variants: Sequence[str], draws: bool) -> str | None:
    """Whose losses ours are compared with. draws: the model has dropout, whose masks torch.compile draws in another order than eager and we do."""
    theirs = [one for one in VARIANTS if one.name in variants and one.device is None and not (draws and one.mode)]
    return min(theirs, key=lambda one: (one.bf16, one.mode is not None)).name if theirs else None


def loss_gaps(timed: Sequence[Process], reference: str | None) -> tuple[dict[str, float | None], list[str]]:
    """The largest relative gap between a loss and the reference's of the same step, of ours and of eager-bf16, by variant, None where a loss is not
    finite; and a sentence for each of ours that is more than 1 % off: products of bf16 numbers may be as far as PyTorch's own autocast to bf16 is."""
    theirs = next((process for process in timed if process.work.variant == reference), None)
    if theirs is None:
        return {}, []
    compared = [one for one in timed if one is not theirs and one.work.variant in (*_ARITHMETIC, AUTOCAST)]
    gaps = {one.work.variant: _gaps(one, theirs) for one in compared}
    parted = []
    for process in compared:
        variant = process.work.variant
        bar = max([LARGEST_GAP, *gaps.get(AUTOCAST, ())]) if variant == FAST else LARGEST_GAP
        step = next((step for step, gap in enumerate(gaps[variant]) if not gap <= bar), None)
        if step is not None and variant != AUTOCAST:
            parted.append(
                f"{variant}: the loss of step {step} is {process.losses[step]:.6g}, and {reference} has {theirs.losses[step]:.6g}: more than "
                f"{100 * bar:.2g}% apart, so that their times cannot be compared."
            )
    return {variant: max(by_step) if all(map(math.isfinite, by_step)) else None for variant, by_step in gaps.items()}, parted


def require_alike(report: dict[str, Any]) -> None:
    """Raises NumericsError where losses part: something else was computed."""
    if parted := report["losses"]["parted"]:
        raise NumericsError(" ".join([*parted, "Please report it with the command."]))


def _gaps(process: Process, theirs: Process) -> list[float]:
    return [abs(our - their) / abs(their) for our, their in zip(process.losses[:COMPARED_STEPS], theirs.losses)]


def ratios(timed: Sequence[Process]) -> dict[str, dict[str, Any]]:
    """How many times as fast as PyTorch's best variant ours are: of each round the quotient of the medians. processor: the same by the
    processor's time; peak_memory: our peak as a share of that variant's."""
    best = best_of_pytorch(timed)
    found: dict[str, dict[str, Any]] = {}
    for process in timed if best is not None else ():
        if name := _ARITHMETIC.get(process.work.variant):
            rounds = [their / our for our, their in zip(process.round_ms, best.round_ms)]
            found[f"{name}/best-torch"] = {
                "median": statistics.median(rounds), "least": min(rounds), "most": max(rounds), "torch": best.work.variant,
                "processor": statistics.median(best.cpu_times_s) / statistics.median(process.cpu_times_s),
                "peak_memory": process.peak_memory_bytes / best.peak_memory_bytes,
                "in_turns": process.in_turns and best.in_turns,
                "unsteady": [one.work.variant for one in (process, best) if is_unsteady(one)],
            }  # fmt: skip
    return found


def is_unsteady(process: Process) -> bool:
    """Its median step took UNSTEADY times its fastest, those of its warm-up included."""
    return statistics.median(process.times_s) > UNSTEADY * min(*process.times_s, process.warm_s)


def require_writable(path: Path) -> None:
    """Raises UsageError, before anything is measured, where `save` could not write there. Makes the folder."""
    folder = path.parent if path.suffix == ".json" else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {path}: there can be no folder {folder}: {error.strerror}.") from error
    if path.is_dir() and path.suffix == ".json" or not os.access(path if path.is_file() else folder, os.W_OK):
        raise UsageError(f"--out {path} cannot be written. Name a .json file or a folder that can.")


def save(report: dict[str, Any], path: Path) -> Path:
    """Writes the report as JSON into a .json file, or into a folder under a name that says preset and sizes; gives the file."""
    file = path if path.suffix == ".json" else path / f"train-step-{report['preset']}-{report['batch_size']}x{report['seq_len']}.json"
    write_json(file, report)
    return file


def to_table(report: dict[str, Any]) -> str:
    """The results as lines of text."""
    lines = [
        f"{report['preset']}: batch {report['batch_size']} x {report['seq_len']} tokens, {report['threads']} threads",
        f"torch {report['torch']} on {report['processor']}, kernels of ours: {report['isa']}; load {report['load'][0]:.1f} to {report['load'][1]:.1f}",
        *([masks_line(report["masked"])] if report["masked"] else []),
        f"{'':19}{'tokens/s':>10}{'ms':>10}{'10-90 %':>18}{'CPU ms':>10}{'peak MB':>10}{'first step':>12}{'of peak':>9}{'steps':>7}",
    ]
    for result in report["results"]:
        if "skipped" in result:
            lines.append(f"{result['variant']:19}skipped: {result['skipped']}")
            continue
        spread = f"{result['ms_p10']:.1f}-{result['ms_p90']:.1f}"
        lines.append(
            f"{result['variant']:19}{result['tokens_per_s']:>10,.0f}{result['ms_median']:>10.1f}{spread:>18}"
            f"{result['cpu_ms_median']:>10.1f}{result['peak_memory_bytes'] / 1e6:>10,.0f}{result['first_step_s']:>10.1f} s"
            + (f"{result['share_of_peak']:>9.0%}" if result["share_of_peak"] else f"{'':9}")
            + f"{result['steps']:>7}"
            + ("" if result["in_turns"] else "  by itself")
        )
    for name, ratio in report["ratios"].items():
        lines.append(
            f"{name}: {ratio['median']:.2f} times as fast as {ratio['torch']} ({ratio['least']:.2f} to {ratio['most']:.2f} by round"
            + ("" if ratio["in_turns"] else ", one after the other")
            + f"), {ratio['processor']:.2f} by processor time, with {ratio['peak_memory']:.2f} times its peak memory"
        )
        if ratio["unsteady"]:
            lines.append(
                f"    This ratio says little: half of the steps of {' and '.join(ratio['unsteady'])} took over {UNSTEADY} times the fastest one. Something else "
                "ran beside, for which several threads of PyTorch's wait by spinning, in its processor time too. Measure again when nothing runs, or with --threads 1."
            )
    compared = report["losses"]
    lines += [f"losses part: {text}" for text in compared["parted"]]
    for one, gap in compared["largest_gap"].items():
        lines.append(f"losses of {compared['steps']} steps: {one} " + (f"within {gap:.3%} of {compared['reference']}" if gap is not None else "not all finite"))
    if not compared["largest_gap"] and report["ratios"]:
        lines.append("losses were compared with nothing: no variant of PyTorch's that draws the same masks of dropout was measured")
    peaks = ", ".join(f"{kind} {gflops:,.0f}" for kind, gflops in report["peak_gflops"].items())
    lines.append(f"products from the cache, GFLOP/s at most: {peaks}; memory {report['memory_gb_per_s']:.1f} GB/s")
    if max(report["load"]) > (report["cpus"] or 1) + 1:
        lines.append(
            f"The machine was busy (load {max(report['load']):.0f} on {report['cpus']} processors): times by the clock say little, and several threads of PyTorch's "
            "wait for each other by spinning, so that its processor time is too long as well. Compare processor times with --threads 1, or measure again."
        )
    lines += [bench_parts.to_table(variant, parts) for variant, parts in report.get("parts", {}).items()]
    return "\n".join(lines)
