"""One way to run a training step, in a process of its own, so that its peak memory is its own.

    python -m torchane.train.bench_worker '{"variant": "twin", "preset": "tiny", ...}'
    stdin: a number of steps a line        stdout: a line of JSON for each: times in seconds, losses, peak memory
           "parts" and a number                    milliseconds and bytes by part of a step, of the twin

A PyTorch variant runs the loop that its users write (mean loss, clip_grad_norm_, fused AdamW); the
twin runs ours, whose sums have a fixed order.
"""

import contextlib
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from torchane import native
from torchane.capture.compiled import COMPILED
from torchane.data.batches import Batch
from torchane.models.build import build_model
from torchane.models.presets import preset
from torchane.train.bench_parts import PartTimer, measure_parts
from torchane.train.engine import EngineModel
from torchane.train.settings import TrainSettings
from torchane.train.step import adamw, train_step

#: The rate is so many weights' share of 1, and 2e-5 at most. AdamW moves each weight by the rate, so that a step changes the loss the more, the more weights
#: there are; and every step has the same batch. A model that learns it by heart in 20 steps parts from itself: at 1e-4 the loss of stories110m in PyTorch's
#: float32 is 1.5 % from itself at the thirteenth step, once its first weights are off by 1e-4 of themselves; at 5e-6 qwen3-0.6b goes from 12 to 3.8, and
#: autocast to bf16 is 1.3 % off.
RATE_BY_WEIGHTS, HIGHEST_RATE = 600.0, 2e-5
GRAD_CLIP = 1.0


@dataclass(frozen=True)
class Variant:
    """Who runs the step, in which precision, compiled by whom."""

    name: str
    device: str | None = None  # a device of ours; None for PyTorch alone
    arithmetic: str = "exact"  # of the twin
    mode: str | None = None  # of torch.compile; None for eager
    bf16: bool = False


VARIANTS = (
    Variant("twin", device="twin"),
    Variant("twin-fast", device="twin", arithmetic="fast"),
    Variant("ane", device="ane"),
    Variant("eager-fp32"),
    Variant("eager-bf16", bf16=True),
    Variant("inductor-fp32", mode="default"),
    Variant("inductor-bf16", mode="default", bf16=True),
    Variant("inductor-max-fp32", mode="max-autotune"),
    Variant("inductor-max-bf16", mode="max-autotune", bf16=True),
)


def variant_of(name: str) -> Variant:
    """The variant of that name; of VARIANTS."""
    return next(one for one in VARIANTS if one.name == name)


def draws_masks(preset_name: str) -> bool:
    """Whether a preset's model has dropout."""
    return any("drop" in key and value for key, value in vars(preset(preset_name).config).items())


@dataclass(frozen=True)
class Work:
    """What every variant is given."""

    variant: str
    preset: str
    batch_size: int
    seq_len: int
    threads: int
    seed: int = 0


def make_step(work: Work, timer: PartTimer | None = None) -> Callable[[], float]:
    """One optimizer step as a function; it gives the loss. All variants start from the same weights and batch, and draw the masks of dropout
    of a step from a seed that is the step's number. timer: watches ours."""
    step, numbers = _make_step(work, timer), itertools.count()

    def seeded() -> float:
        torch.default_generator.manual_seed(next(numbers))
        return step()

    return seeded


def _make_step(work: Work, timer: PartTimer | None) -> Callable[[], float]:
    variant = variant_of(work.variant)
    model = build_model(preset(work.preset).config, seed=work.seed)
    settings = TrainSettings(
        steps=1, batch_size=work.batch_size, seq_len=work.seq_len, lr=learning_rate(model), warmup_steps=0, grad_clip=GRAD_CLIP
    )
    generator = torch.Generator().manual_seed(work.seed)
    text = torch.randint(0, model.config.vocab_size, (work.batch_size, work.seq_len + 1), generator=generator)
    batch = Batch(text[:, :-1].contiguous(), text[:, 1:].contiguous(), work.batch_size * work.seq_len, target_bytes=0)
    if variant.device is not None:
        watched = {} if timer is None else {"observers": (timer,)}
        engine = EngineModel(model, variant.device, arithmetic=variant.arithmetic, **watched)
        part = {} if timer is None else {"part": timer.part}
        staging = adamw(model, settings, engine)
        return lambda: train_step(engine, staging, batch, GRAD_CLIP, **part).loss
    forward: Callable[..., Any] = model if variant.mode is None else torch.compile(model, dynamic=False, mode=variant.mode)
    decayed, plain = ([param for param in model.parameters() if (param.ndim >= 2) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True)
    return lambda: plain_step(forward, model, optimizer, batch, variant.bf16)


def learning_rate(model: nn.Module) -> float:
    """That every variant takes."""
    return min(HIGHEST_RATE, RATE_BY_WEIGHTS / sum(param.numel() for param in model.parameters()))


def plain_step(
    forward: Callable[..., Any], model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, bf16: bool
) -> float:
    """The step that a PyTorch user writes. bf16: the forward runs under autocast."""
    precision: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
    optimizer.zero_grad(set_to_none=True)
    with precision:
        logits = forward(batch.tokens)
    loss = F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
    optimizer.step()
    return loss.item()


def peak_memory_bytes() -> int:
    """The most memory that this program has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss also counts what the process held before it became this program
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def serve(work: Work) -> None:
    """Answers each line of standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")  # whatever a library prints must not mix with the answers
    os.dup2(2, 1)
    use_threads(work.threads)
    step: Callable[[], float] | None = None
    for line in sys.stdin:
        try:
            if line.startswith("parts"):
                timer = PartTimer()
                answer: dict[str, Any] = {"parts": measure_parts(make_step(work, timer), timer, int(line.split()[1])), **_sizes(work, timer)}
            else:
                step = step or make_step(work)
                answer = measure(step, int(line))
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
            raise
        print(json.dumps(answer), file=answers, flush=True)


def _sizes(work: Work, timer: PartTimer) -> dict[str, int]:
    """What the floors of the parts outside of plans follow from. Scores that are computed in slices are no tensor of the host's, and no loss is timed."""
    config = preset(work.preset).config
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build_model(config).parameters())
    return {"parameters": parameters, "scores": work.batch_size * work.seq_len * config.vocab_size if timer.seconds["loss"] else 0}


def use_threads(count: int) -> None:
    """For torch and for the twin."""
    torch.set_num_threads(count)
    if native.is_built():
        native.set_threads(count)


def measure(step: Callable[[], float], times: int) -> dict[str, Any]:
    """Runs the step so many times. macs: of one step in programs of ours; 0 for PyTorch."""
    times_s, cpu_times_s, losses = [], [], []
    for _ in range(times):
        start, cpu_start = time.perf_counter(), time.process_time()
        losses.append(step())
        times_s.append(time.perf_counter() - start)
        cpu_times_s.append(time.process_time() - cpu_start)
    macs = sum(plan.macs for compiled in COMPILED for plan in compiled.plans.values())
    return {"times_s": times_s, "cpu_times_s": cpu_times_s, "losses": losses, "macs": macs, "peak_memory_bytes": peak_memory_bytes()}


def describe(work: Work) -> str:
    return json.dumps(asdict(work))


if __name__ == "__main__":
    serve(Work(**json.loads(sys.argv[1])))
