"""`torchane plan --preset`: a training step planned for each machine, priced, and refused with what would fit.

    Step  ──►  for each machine: planned (cli/planned.py) ──► what no chip or memory takes is refused ──► priced
    --recompute auto      of none, half and all the one that is predicted to take the least time, among those that fit
    --grad-accum N        N micro-steps merged into one batch; beside it what N calls of loss.backward() would take
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchane import chips, passes
from torchane.chips.points import machine
from torchane.cli.planned import Request, planned_steps
from torchane.errors import DeviceError, LegalityError, UsageError
from torchane.models.config import Config, read_config
from torchane.models.files import read_json
from torchane.models.presets import preset
from torchane.options import RECOMPUTE
from torchane.plan.constants import Pricing, pricing_for
from torchane.plan.memory import RESERVE_BYTES, Forecast, free_bytes, largest_batch
from torchane.plan.outline import PlannedStep
from torchane.plan.step import StepPrice, price_step
from torchane.runtime.ane.doctor.record import probed

#: Of the multiply-adds of a step that has a price.
_LEAST_IN_PROGRAMS = 0.99
#: What planning itself holds for each pair of positions: masks, and what PyTorch makes of them. Measured: 5.2 GB at 16,384 tokens.
_BYTES_PER_PAIR = 20
AUTO = "auto"


@dataclass(frozen=True)
class Step:
    """What is asked for. grad_accum: micro-steps of batch_size that are merged. lora: the rank of adapters, or None."""

    name: str
    config: Config
    batch_size: int
    seq_len: int
    grad_accum: int
    lora: int | None
    recompute: str
    frozen: str
    cache: str
    memory_gb: float | None
    _planned: dict[Hashable, PlannedStep] = field(init=False, default_factory=dict, compare=False, repr=False)

    @property
    def merged(self) -> int:
        """Sequences in the batch that all micro-steps make."""
        return self.batch_size * self.grad_accum

    def alike(self, pricing: Pricing, batch_size: int, recompute: str) -> Hashable:
        """All that a cut and the form of a product depend on: machines that no step tells apart share a plan."""
        hardware = machine(pricing.name)
        return hardware.chip, hardware.clock_hz, pricing_for(pricing.name).engine, batch_size, recompute

    def options(self, pricing: Pricing, recompute: str) -> dict[str, str]:
        """The backend's. An engine's arithmetic needs range control."""
        return {"chip": pricing.name, "ranges": "on", "recompute": recompute, "frozen": self.frozen, "cache": self.cache}

    def have(self, alike: Hashable, planned: PlannedStep) -> None:
        """It is planned already."""
        self._planned[alike] = planned

    def plan(self, pricings: Sequence[Pricing], batch_size: int, recompute: str) -> None:
        """Plans it for all machines at once, which is traced once."""
        missing: dict[Hashable, Pricing] = {}
        for pricing in pricings:
            alike = self.alike(pricing, batch_size, recompute)
            if alike not in self._planned:
                missing.setdefault(alike, pricing)
        requests = [Request(self.config, batch_size, self.seq_len, self.lora, self.options(pricing, recompute)) for pricing in missing.values()]
        if requests:
            self._planned.update(zip(missing, planned_steps(requests, cache=self.cache == "on"), strict=True))

    def planned(self, pricing: Pricing, batch_size: int, recompute: str) -> PlannedStep:
        self.plan([pricing], batch_size, recompute)
        return self._planned[self.alike(pricing, batch_size, recompute)]


@dataclass(frozen=True)
class _Priced:
    """One way to compute again, with its price."""

    recompute: str
    planned: PlannedStep
    price: StepPrice


def config_of(name: str) -> Config:
    """Of a preset, or of a folder with a Hugging Face config.json."""
    path = Path(name) / "config.json"
    return read_config(read_json(path), source=str(path)) if path.is_file() else preset(name).config


def price_preset(step: Step, pricings: Sequence[Pricing]) -> tuple[list[dict[str, Any]], PlannedStep]:
    """A price for each machine, and the last's plan."""
    _require_settings(step)
    for pricing in pricings:  # said before anything is traced
        passes.require_form(step.frozen, probed(pricing.name))
        _require_length(step, machine(pricing.name).chip)
    for recompute in RECOMPUTE if step.recompute == AUTO else (step.recompute,):
        step.plan(pricings, step.merged, recompute)
    found = []
    for pricing in pricings:
        ways, refused = _ways(step, pricing)
        best = min(ways, key=lambda way: way.price.predicted_ms)
        found.append({**_told(step, pricing, best, ways), "recompute_refused": refused})
    return found, best.planned


def _require_settings(step: Step) -> None:
    longest = step.config.max_position_embeddings
    if step.seq_len > longest:
        raise UsageError(f"--seq-len {step.seq_len} is longer than {step.name} takes. Its longest is {longest}: --seq-len {longest}.")
    if step.frozen != "inputs" and step.lora is None:
        raise UsageError(f"--frozen {step.frozen} says what frozen weights are, and a preset that is trained whole has none. Add --lora RANK.")
    pairs, free = _BYTES_PER_PAIR * step.seq_len**2, free_bytes()
    if free is not None and pairs > free:
        fits = int((free / _BYTES_PER_PAIR) ** 0.5) // 32 * 32
        raise DeviceError(
            f"Planning {step.seq_len:,} tokens works out masks for each pair of them, about {pairs / 2**30:.1f} GiB here, and {free / 2**30:.1f} GiB of "
            f"memory are free. Try --seq-len {fits}, or plan on a machine with more."
        )


def _ways(step: Step, pricing: Pricing) -> tuple[list[_Priced], dict[str, str]]:
    """Those that have a price and fit, and why others do not. Raises LegalityError or DeviceError where none does."""
    priced: list[_Priced] = []
    refused: dict[str, str] = {}
    for recompute in RECOMPUTE if step.recompute == AUTO else (step.recompute,):
        planned = step.planned(pricing, step.merged, recompute)
        try:
            _require_in_programs(step, machine(pricing.name).chip, planned.share_in_programs, recompute)
            _require_memory(step, planned.memory, recompute)
        except (DeviceError, LegalityError) as error:
            refused[recompute], last = str(error), error
        else:
            priced.append(_Priced(recompute, planned, price_step(planned.graphs, pricing, tokens=step.merged * step.seq_len)))
    if not priced:
        raise last
    return priced, refused


def _told(step: Step, pricing: Pricing, best: _Priced, ways: Sequence[_Priced]) -> dict[str, Any]:
    return {
        "kind": "step", "predicted": True, "preset": step.name, "batch_size": step.batch_size, "seq_len": step.seq_len,
        "grad_accum": step.grad_accum, "recompute": best.recompute, "frozen": step.frozen, "lora": step.lora,
        "memory_bytes": best.planned.memory.to_dict(), **best.price.to_dict(),
        "recompute_ms": {way.recompute: way.price.predicted_ms for way in ways}, "apart": _apart(step, pricing, best),
    }  # fmt: skip


def _apart(step: Step, pricing: Pricing, best: _Priced) -> Mapping[str, Any] | None:
    """What the same tokens take where each micro-step gives its gradients, as a loop of loss.backward() asks; None for one micro-step."""
    if step.grad_accum == 1:
        return None
    planned = step.planned(pricing, step.batch_size, best.recompute)
    one = price_step(planned.graphs, pricing, tokens=step.batch_size * step.seq_len)
    times = step.grad_accum
    return {
        "predicted_ms": times * one.predicted_ms, "interval_ms": [times * ms for ms in one.interval_ms], "ms_per_256_tokens": one.ms_per_256_tokens,
        "predicted_mj": times * one.predicted_mj, "mj_per_token": one.mj_per_token, "dispatches_per_step": times * one.dispatches_per_step,
        "bytes_staged": times * one.bytes_staged, "bytes_unstaged": times * one.bytes_unstaged, "memory_bytes": planned.memory.to_dict(),
    }  # fmt: skip


def _require_length(step: Step, chip: str) -> None:
    """Scores of one token have a column for each."""
    limit = chips.load(chip).widest_matrix
    if step.seq_len <= limit:
        return
    longer = [name for name in chips.names() if name != chips.DEFAULT and chips.load(name).widest_matrix >= step.seq_len]
    other = f", or --chip {longer[0]}" if longer else ""
    raise LegalityError(
        f"{step.name} at {step.seq_len:,} tokens: {chip} takes {limit:,} rows or columns of a matrix, and scores have a column for each token. "
        f"Try --seq-len {limit}{other}."
    )


def _require_in_programs(step: Step, chip: str, share: float, recompute: str) -> None:
    """A step whose products the host does has no price: only programs have one."""
    if share >= _LEAST_IN_PROGRAMS:
        return
    limit = chips.load(chip).widest_matrix
    fits = limit // step.seq_len
    if 0 < fits < step.merged:
        smaller = f"--batch-size {fits}" if step.grad_accum == 1 else f"--grad-accum {fits // step.batch_size}" if fits >= step.batch_size else f"--batch-size {fits} --grad-accum 1"
    else:
        smaller = f"--seq-len {limit}" if fits == 0 else "another chip, or --preset" if recompute == "none" else "--recompute none"
    raise LegalityError(
        f"{step.name} at {step.merged:,} x {step.seq_len:,} tokens: programs of {chip} hold {share:.0%} of the multiply-adds, and PyTorch on the host would "
        f"do the rest, which has no price. {chip} takes {limit:,} rows or columns of a matrix. Try {smaller}."
    )


def _require_memory(step: Step, needed: Forecast, recompute: str) -> None:
    """Raises DeviceError with what would fit."""
    if step.memory_gb is None:
        return
    available = int(step.memory_gb * 2**30)
    more = needed.total + RESERVE_BYTES - available
    if more <= 0:
        return
    fits = largest_batch(needed, step.merged, available)
    kept = "--recompute half or all, which keep less of the forward, or " if recompute != "all" and needed.saved > more else ""
    nearest = f"--batch-size {fits}" if fits else "a shorter --seq-len, a smaller --preset" if kept else "a smaller --preset"
    if step.grad_accum > 1 and fits:
        nearest = f"--grad-accum {fits // step.batch_size}" if fits >= step.batch_size else f"{nearest} --grad-accum 1"
    raise DeviceError(
        f"{step.name} at {step.merged:,} x {step.seq_len:,} tokens: {more / 2**30:.2f} GiB more than {step.memory_gb:g} GB are needed. {needed}; and "
        f"{RESERVE_BYTES / 2**30:.2f} GiB to work in. Try {kept}{nearest}."
    )
