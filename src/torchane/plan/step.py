"""What a training step is predicted to take: the Plan that the runtime executes, priced dispatch by dispatch.

    price = price_step([outline_of(plan) for plan in (forward, backward)], pricing_for("m4"), tokens=2048)
    price.predicted_ms = engine_ms + staging_ms - hidden_ms;  price.programs says where it goes

The engine's part is a loop of programs whose surfaces stay where they are. Staging is the host's rounding and widening of what
crosses the boundary; what goes on beside a dispatch (overlap.py) is hidden as far as that lasts. Host ops (the loss, the embedding, the optimizer) are listed and not priced.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from torchane.chips.points import machine
from torchane.plan.constants import ENGINE_OF, ONLY_THROUGH_E5RT, Pricing, interval, pricing_for
from torchane.plan.cost import program_cost
from torchane.plan.outline import Outline
from torchane.plan.price import energy_interval, outside_of, unseen_share
from torchane.plan.schedules import SCHEDULES, Schedule
from torchane.plan.work import ProgramWork

#: fp16 bytes a second that a host rounds or widens: MDX M4, 282 MB of surfaces of its static schedule in 4.1 ms. One reading.
STAGED_BYTES_PER_S = 69e9


@dataclass(frozen=True)
class ProgramLine:
    """One program of a step, all its dispatches together. bound: of one run. padding_bytes: of the surfaces of one run, what holds no number."""

    graph: str
    name: str
    dispatches: int
    flops: float
    bytes_in: int
    bytes_out: int
    predicted_ms: float
    predicted_mj: float
    bound: str
    share_of_peak: float
    padding_bytes: int = 0


@dataclass(frozen=True)
class StepPrice:
    """A forward and a backward of so many tokens, predicted. predicted_ms = engine_ms + staging_ms - hidden_ms; engine_ms is the sum of
    the programs, hidden_ms what of the staging goes on beside dispatches. predicted_mj is of the engine's rail. loaded_programs: different ones. host_ops: by name, not priced; host_reasons:
    why no program holds them."""

    machine: str
    chip: str
    tokens: int
    predicted_ms: float
    interval_ms: tuple[float, float]
    ms_per_256_tokens: float
    interval_ms_per_256_tokens: tuple[float, float]
    predicted_mj: float
    interval_mj: tuple[float, float]
    mj_per_token: float
    interval_mj_per_token: tuple[float, float]
    engine_ms: float
    dispatch_ms: float
    staging_ms: float
    hidden_ms: float
    share_of_peak: float
    flops: float
    dispatches_per_step: int
    loaded_programs: int
    bytes_staged: int
    bytes_unstaged: int
    outside: tuple[str, ...]
    host_ops: dict[str, int]
    host_reasons: dict[str, str]
    measured: bool
    programs: tuple[ProgramLine, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def price_programs(
    programs: Sequence[tuple[str, str, int, ProgramWork]], pricing: Pricing, *, tokens: int, staged: int, unstaged: int,
    host_ops: Sequence[tuple[str, str]], loaded: int, hidden_s: float = 0.0,
) -> StepPrice:  # fmt: skip
    """Programs as (graph, name, dispatches, work), in a loop; bytes that the host stages and unstages; its ops with their reasons; hidden_s: of the
    staging, beside dispatches."""
    hardware = machine(pricing.name)
    lines, dispatch_s, energy_j, unseen_s = [], 0.0, 0.0, 0.0
    for graph, name, count, work in programs:
        cost = program_cost(
            work.layers, work.bytes_in, work.bytes_out, hardware, pricing.engine, pricing.shared,
            fp32_surfaces=work.fp32_surfaces, in_a_loop=True,
        )  # fmt: skip
        flops = sum(layer.flops for layer in work.layers)
        dispatch_s += count * cost.dispatch_s
        energy_j += count * cost.energy_j
        unseen_s += count * cost.time_s * unseen_share(work, cost)
        lines.append(
            ProgramLine(
                graph, name, count, flops, work.bytes_in, work.bytes_out, count * cost.time_s * 1e3, count * cost.energy_j * 1e3,
                cost.bound, flops / cost.time_s / hardware.peak_flops_per_s,
            )
        )  # fmt: skip
    engine_ms = sum(line.predicted_ms for line in lines)
    staging_ms = (staged + unstaged) / STAGED_BYTES_PER_S * 1e3
    total_ms, total_mj, flops = engine_ms + staging_ms - hidden_s * 1e3, energy_j * 1e3, sum(line.flops * line.dispatches for line in lines)
    is_unseen = unseen_s * 1e3 > 0.2 * engine_ms
    low, high = loop_interval(pricing, is_unseen)
    energy_low, energy_high = energy_interval(low, high)
    said = outside_of([work for _, _, _, work in programs], pricing, is_unseen)
    if pricing.measured is None and ENGINE_OF[pricing.name] in ONLY_THROUGH_E5RT:
        said = (*said, f"every fitted figure of {ENGINE_OF[pricing.name]} was taken through e5rt, none in memory")
    per_256, per_token = 256 / tokens, 1 / tokens
    return StepPrice(
        machine=pricing.name, chip=hardware.chip, tokens=tokens,
        predicted_ms=total_ms, interval_ms=(total_ms * low, total_ms * high),
        ms_per_256_tokens=total_ms * per_256, interval_ms_per_256_tokens=(total_ms * low * per_256, total_ms * high * per_256),
        predicted_mj=total_mj, interval_mj=(total_mj * energy_low, total_mj * energy_high),
        mj_per_token=total_mj * per_token,
        interval_mj_per_token=(total_mj * energy_low * per_token, total_mj * energy_high * per_token),
        engine_ms=engine_ms, dispatch_ms=dispatch_s * 1e3, staging_ms=staging_ms, hidden_ms=hidden_s * 1e3,
        share_of_peak=flops / (engine_ms / 1e3) / hardware.peak_flops_per_s if engine_ms else 0.0, flops=flops,
        dispatches_per_step=sum(line.dispatches for line in lines), loaded_programs=loaded,
        bytes_staged=staged, bytes_unstaged=unstaged, outside=said,
        host_ops=dict(Counter(name for name, _ in host_ops)), host_reasons=dict(reversed(host_ops)),
        measured=pricing.measured is not None, programs=tuple(lines),
    )  # fmt: skip


def loop_interval(pricing: Pricing, unseen_form: bool) -> tuple[float, float]:
    """As `interval`, at least as wide as published schedules lie around their predictions: 10th and 90th percentile."""
    low, high = interval(pricing, unseen_form)
    if pricing.measured is not None and pricing.measured.error is not None:
        return low, high
    ratios = schedule_ratios()
    return min(low, float(np.quantile(ratios, 0.1))), max(high, float(np.quantile(ratios, 0.9)))


@cache
def schedule_ratios() -> tuple[float, ...]:
    """published / predicted of the engine's part, of every schedule and machine that has both."""
    found = []
    for schedule in SCHEDULES.values():
        for name, figure in schedule.published.items():
            if figure.engine_ms is not None:
                found.append(sum(figure.engine_ms) / 2 / engine_ms(schedule, pricing_for(name)))
    return tuple(found)


def engine_ms(schedule: Schedule, pricing: Pricing) -> float:
    """Predicted milliseconds of the engine's part of one micro-step."""
    return 1e3 * sum(
        count * program_cost(
            work.layers, work.bytes_in, work.bytes_out, machine(pricing.name), pricing.engine, pricing.shared, in_a_loop=True
        ).time_s
        for _, count, work in schedule.programs
    )  # fmt: skip


def price_step(graphs: Sequence[Outline], pricing: Pricing, *, tokens: int) -> StepPrice:
    """A forward and a backward, as the runtime executes them."""
    programs, loaded = [], set()
    for graph in graphs:
        counts = Counter(act.program for act in graph.acts)
        loaded |= {act.loaded for act in graph.acts if act.program is not None}
        programs += [(graph.name, one.name, counts[index], one.work) for index, one in enumerate(graph.programs)]
    acts = [act for graph in graphs for act in graph.acts]
    price = price_programs(
        programs, pricing, tokens=tokens, staged=sum(act.size_bytes for act in acts if act.kind == "stage"),
        unstaged=sum(act.size_bytes for act in acts if act.kind == "unstage"),
        host_ops=[op for act in acts for op in act.host_ops], loaded=len(loaded), hidden_s=sum(_hidden_s(graph, pricing) for graph in graphs),
    )  # fmt: skip
    padding = [one.padding_bytes for graph in graphs for one in graph.programs]
    lines = tuple(replace(line, padding_bytes=size) for line, size in zip(price.programs, padding, strict=True))
    return replace(price, programs=lines)


def _hidden_s(graph: Outline, pricing: Pricing) -> float:
    """Seconds of staging that nobody waits for, since a dispatch runs meanwhile."""
    found = beside_s = 0.0
    for act in graph.acts:
        if act.is_beside:
            beside_s += act.size_bytes / STAGED_BYTES_PER_S
        elif act.program is not None and beside_s:
            work = graph.programs[act.program].work
            cost = program_cost(
                work.layers, work.bytes_in, work.bytes_out, machine(pricing.name), pricing.engine, pricing.shared,
                fp32_surfaces=work.fp32_surfaces, in_a_loop=True,
            )  # fmt: skip
            found, beside_s = found + min(beside_s, cost.time_s), 0.0
    return found
