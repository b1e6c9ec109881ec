"""What a program is predicted to take on a machine, op by op: the total is the sum of its parts.

    price = price_program(program, pricing_for("m4"))
    price.predicted_ms, price.interval_ms, price.predicted_mj, price.bound, price.ops

No engine is asked. An interval is made of the errors on published points that no constant was fitted to; what no figure
speaks of is said (`outside`) and widens it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from torchane.chips.points import machine, points
from torchane.mil.ir import Program
from torchane.plan.constants import KNOWN_FORMS, Pricing, interval, load_fitted
from torchane.plan.cost import ProgramCost, program_cost
from torchane.plan.work import OpWork, ProgramWork, work_of

#: A form below this share of the layers' time does not make a prediction one outside the data.
_MATTERS = 0.2
_FORM_WORDS = {
    "matmul": "products of two values of run time", "dynamic": "products with an input as weights",
    "pointwise": "element-wise work", "softmax": "softmax",
}  # fmt: skip


@dataclass(frozen=True)
class OpPrice:
    """One op. bound: what takes its time, "arithmetic", "weights" or "element-wise"."""

    name: str
    kind: str
    predicted_ms: float
    predicted_mj: float
    bound: str
    flops: float
    weight_bytes: float
    slow_multiple: bool


@dataclass(frozen=True)
class ProgramPrice:
    """One run of a program, predicted. predicted_ms = dispatch_ms + surfaces_ms + the sum of the ops.

    predicted_mj is of the engine's rail; awake_mj of it what the engine draws by being awake, the ops have the rest.
    cpu_mj, package_mj: of the processor beside it and of the whole chip, by the ratio to the rail that published runs
    of that length had.
    """

    machine: str
    chip: str
    predicted_ms: float
    interval_ms: tuple[float, float]
    predicted_mj: float
    interval_mj: tuple[float, float]
    cpu_mj: float
    cpu_interval_mj: tuple[float, float]
    package_mj: float
    package_interval_mj: tuple[float, float]
    bound: str
    dispatch_ms: float
    surfaces_ms: float
    awake_mj: float
    flops: float
    share_of_peak: float
    bytes_in: int
    bytes_out: int
    weight_bytes: float
    outside: tuple[str, ...]
    measured: bool
    wake_ms: float | None
    ops: tuple[OpPrice, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def price_program(program: Program, pricing: Pricing) -> ProgramPrice:
    """Raises CompileError for what has no price: sizes of run time, control flow."""
    return price_work(work_of(program), pricing)


def price_work(work: ProgramWork, pricing: Pricing) -> ProgramPrice:
    hardware = machine(pricing.name)
    cost = program_cost(
        work.layers, work.bytes_in, work.bytes_out, hardware, pricing.engine, pricing.shared, fp32_surfaces=work.fp32_surfaces
    )
    unseen_form = unseen_share(work, cost) > _MATTERS
    outside = outside_of([work], pricing, unseen_form)
    low, high = interval(pricing, unseen_form)
    energy_low, energy_high = energy_interval(low, high)
    ms = cost.time_s * 1e3
    cpu, package = _beside_rail("cpu_watts", ms), _beside_rail("package_watts", ms)
    rail_mj, flops = cost.energy_j * 1e3, sum(layer.flops for layer in work.layers)
    return ProgramPrice(
        machine=pricing.name,
        chip=hardware.chip,
        predicted_ms=cost.time_s * 1e3,
        interval_ms=(cost.time_s * 1e3 * low, cost.time_s * 1e3 * high),
        predicted_mj=rail_mj,
        interval_mj=(rail_mj * energy_low, rail_mj * energy_high),
        cpu_mj=rail_mj * cpu[1],
        cpu_interval_mj=(rail_mj * energy_low * cpu[0], rail_mj * energy_high * cpu[2]),
        package_mj=rail_mj * package[1],
        package_interval_mj=(rail_mj * energy_low * package[0], rail_mj * energy_high * package[2]),
        bound=cost.bound,
        dispatch_ms=cost.dispatch_s * 1e3,
        surfaces_ms=cost.surfaces_s * 1e3,
        awake_mj=pricing.shared.active_w * cost.time_s * 1e3,
        flops=flops,
        share_of_peak=flops / cost.time_s / hardware.peak_flops_per_s,
        bytes_in=work.bytes_in,
        bytes_out=work.bytes_out,
        weight_bytes=sum(layer.weight_bytes for layer in cost.layers),
        outside=outside,
        measured=pricing.measured is not None,
        wake_ms=hardware.wake_ms,
        ops=_op_prices(work.ops, cost),
    )


def _op_prices(ops: Sequence[OpWork], cost: ProgramCost) -> tuple[OpPrice, ...]:
    found, at = [], 0
    for op in ops:
        costs = cost.layers[at : at + len(op.layers)]
        at += len(op.layers)
        longest = max(costs, key=lambda layer: layer.time_s)
        found.append(
            OpPrice(
                op.name, op.kind, sum(layer.time_s for layer in costs) * 1e3, sum(layer.energy_j for layer in costs) * 1e3,
                longest.bound, sum(layer.flops for layer in op.layers), sum(layer.weight_bytes for layer in costs),
                any(layer.is_slow_multiple for layer in costs),
            )
        )  # fmt: skip
    return tuple(found)


def unseen_share(work: ProgramWork, cost: ProgramCost) -> float:
    """Of the whole time, what goes to forms that no constant was fitted to."""
    unseen = [layer.form not in KNOWN_FORMS or layer.weight_bits < 16 for layer in work.layers]
    odd = {layer for op in work.ops if op.unseen for layer in op.layers}
    time = sum(c.time_s for c, layer, is_unseen in zip(cost.layers, work.layers, unseen) if is_unseen or layer in odd)
    return time / cost.time_s


def outside_of(works: Sequence[ProgramWork], pricing: Pricing, unseen_form: bool) -> tuple[str, ...]:
    """What no published figure that was fitted speaks of, in words."""
    said = [pricing.unseen] if pricing.unseen else []
    chip = machine(pricing.name).chip
    if not pricing.name.startswith(chip):
        said.append(f"no file says what {pricing.name} takes: the one of {chip} stands in")
    if unseen_form:
        layers = [layer for work in works for layer in work.layers]
        forms = {layer.form for layer in layers} - KNOWN_FORMS
        low_bit = ["weights of fewer than 16 bits"] if any(layer.weight_bits < 16 for layer in layers) else []
        named = ", ".join([*sorted(_FORM_WORDS[form] for form in forms), *low_bit])
        said.append(f"forms that no constant was fitted to take over a fifth of it: {named}")
    reasons: dict[str, list[str]] = {}
    for op in (op for work in works for op in work.ops):
        if op.unseen:
            reasons.setdefault(op.unseen, []).append(op.name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        said.append(f"{reason} ({', '.join(names[:2])}{more})")
    return tuple(said)


def energy_interval(low: float, high: float) -> tuple[float, float]:
    """Errors of power at the published time, and those of the time."""
    errors = load_fitted().errors["energy_held_out"]
    return (
        float(np.exp(-np.hypot(np.log(low), np.log(errors.low)))),
        float(np.exp(np.hypot(np.log(high), np.log(errors.high)))),
    )


def _beside_rail(meter: str, ms: float) -> tuple[float, float, float]:
    """That meter over the rail in published runs about as long: lowest, median, highest. Short runs keep the processor busy."""
    metered = [(point.ms, getattr(point, meter) / point.watts) for point in points() if point.watts and getattr(point, meter)]
    near = sorted(ratio for length, ratio in metered if 1 / 3 < length / ms < 3) if ms > 0 else []
    if len(near) < 3:
        closest = sorted(metered, key=lambda pair: abs(np.log(pair[0] / max(ms, 1e-6))))[:5]
        near = sorted(ratio for _, ratio in closest)
    return near[0], float(np.median(near)), near[-1]
