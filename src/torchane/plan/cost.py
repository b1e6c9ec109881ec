"""What a program takes on an engine: seconds and joules, part by part. Few constants, fitted to published figures.

    alone    dispatch (longer where surfaces are fp32 and cast inside)
             + max(sum of products, sum of element-wise work) + bytes of surfaces / surface bandwidth
    in a loop of programs whose surfaces stay where they are
             half a dispatch + max(products, element-wise work, bytes of surfaces / weight bandwidth)
    product      max(arithmetic, streaming of weights); of a weight that is an input, max(arithmetic + its loading, streaming)
    arithmetic   flops / (peak of the clock * columns / (columns + columns_half))
    streaming    weights that no core can keep, read once for every `tile_columns` columns of a matmul, / weight bandwidth
    energy       active watts * time + flops + weight bytes read

Two units work beside each other, one on products and one on numbers (M6S: ne and pe cycles). What a core keeps (64 KiB), the
peak, the rate of element-wise work, of a weight that is an input, of dispatches in a loop, and the slow multiples of 1 MiB are
published readings, not fitted. docs/cost-model.md has the split, the errors and what is not understood.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torchane.chips.points import CORES, Layer, Machine

#: Weights of a layer that each core keeps; what exceeds it is streamed (GDE M1, MDX M4 part 4).
RESIDENT_BYTES_PER_CORE = 64 * 1024
#: Weights of a core that are an exact multiple of this stream slowly, on these generations (Yoon M3, LED M4, MDX PR40 M4 Max).
SLOW_MULTIPLE_BYTES = 1 << 20
SLOW_CHIPS = frozenset({"m3", "m4"})
#: How much slower: 1.45 (LED M4, 2 MiB), 1.84 (LED M4), 2.1 to 2.9 (PR40 M4 Max), 2.66 (Yoon M3); their geometric mean.
SLOW_FACTOR = 2.2
#: Bytes a second at which a weight that is an input becomes an operand: FG M3 Max, 2,560 x 2,560 in 1.00 ms. One reading.
INPUT_WEIGHT_BYTES_PER_S = 13.1e9
#: A dispatch that follows another closely, over one alone: SLV M3 Pro 0.045 of 0.13 ms, QANE M5 Max 0.065 of 0.095.
IN_A_LOOP = 0.5
#: Passes over the numbers of a softmax: the largest, exponentials and their sum, the division.
SOFTMAX_PASSES = 3


@dataclass(frozen=True)
class Globals:
    """What all engines share. columns_half: columns at which arithmetic runs at half of its peak. tile_columns: columns of
    a matmul for which its weights are read once. cast_factor: how much longer a dispatch is with fp32 surfaces."""

    columns_half: float
    tile_columns: float
    cast_factor: float
    active_w: float
    joule_per_flop: float
    joule_per_weight_byte: float


@dataclass(frozen=True)
class Engine:
    """What one machine's engine has of its own."""

    dispatch_s: float
    surface_bytes_per_s: float
    weight_bytes_per_s: float


@dataclass(frozen=True)
class LayerCost:
    """Seconds of a layer and what bounds them: "arithmetic", "weights" or "element-wise"."""

    time_s: float
    bound: str
    weight_bytes: float
    energy_j: float
    is_slow_multiple: bool = False


@dataclass(frozen=True)
class ProgramCost:
    """One run of a program. time_s = dispatch_s + surfaces_s + the sum of the layers; energy likewise, of the rail.

    Work that is hidden behind other work has no time of its own here: of products and element-wise work the longer counts,
    and the shorter is 0.
    """

    dispatch_s: float
    surfaces_s: float
    layers: tuple[LayerCost, ...]
    time_s: float
    energy_j: float

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        parts = {"dispatch": self.dispatch_s, "surfaces": self.surfaces_s}
        for layer in self.layers:
            parts[layer.bound] = parts.get(layer.bound, 0.0) + layer.time_s
        return max(parts, key=parts.__getitem__)


def layer_cost(layer: Layer, machine: Machine, engine: Engine, shared: Globals) -> LayerCost:
    """Seconds of all pieces of a layer; its energy without what the engine draws by being awake."""
    if not layer.is_product:
        passes = SOFTMAX_PASSES if layer.form == "softmax" else 1
        return LayerCost(layer.count * passes * layer.outer * layer.columns / machine.numbers_per_s, "element-wise", 0.0, 0.0)
    rate = machine.peak_flops_per_s * layer.columns / (layer.columns + shared.columns_half)
    if layer.activation_bits == 8 and layer.weight_bits == 8:
        rate *= 2  # both int8 (MDX M4: 35.1 against 18.6 T/s)
    arithmetic = layer.flops / rate
    streamed, slow = 0.0, False
    if _per_core(layer) > RESIDENT_BYTES_PER_CORE:
        reads = math.ceil(layer.columns / shared.tile_columns) if layer.form != "conv" else 1
        streamed = layer.count * layer.weight_bytes * reads
        slow = reads == 1 and layer.form in ("conv", "linear") and is_slow_multiple(layer, machine)
    streaming = streamed / engine.weight_bytes_per_s * (SLOW_FACTOR if slow else 1.0)
    if layer.form == "dynamic":
        loading = layer.count * layer.weight_bytes / INPUT_WEIGHT_BYTES_PER_S
        energy = _product_energy(layer, streamed, shared)
        bound = "weights" if streaming > arithmetic + loading else "input weights" if loading > arithmetic else "arithmetic"
        return LayerCost(max(arithmetic + loading, streaming), bound, streamed, energy)
    bound = "weights" if streaming > arithmetic else "arithmetic"
    return LayerCost(max(arithmetic, streaming), bound, streamed, _product_energy(layer, streamed, shared), slow)


def _product_energy(layer: Layer, streamed: float, shared: Globals) -> float:
    read = max(streamed, layer.count * layer.weight_bytes)
    return shared.joule_per_flop * layer.flops + shared.joule_per_weight_byte * read


def is_slow_multiple(layer: Layer, machine: Machine) -> bool:
    """(outputs / 16) x inputs x bytes of a weight is an exact multiple of 1 MiB, on a generation that is slow there."""
    per_core = _per_core(layer)
    return machine.chip in SLOW_CHIPS and per_core >= SLOW_MULTIPLE_BYTES and per_core % SLOW_MULTIPLE_BYTES == 0


def _per_core(layer: Layer) -> float:
    """Bytes of weights of one piece in each core: outputs are dealt to cores."""
    return -(-layer.outer // CORES) * layer.inner * layer.kernel**2 * layer.weight_bits / 8


def program_cost(
    layers: Sequence[Layer],
    bytes_in: int,
    bytes_out: int,
    machine: Machine,
    engine: Engine,
    shared: Globals,
    *,
    fp32_surfaces: bool = False,
    dispatches: int = 1,
    in_a_loop: bool = False,
) -> ProgramCost:
    """One run of a program of these layers between surfaces of that many bytes, alone or in a loop."""
    dispatch = dispatches * engine.dispatch_s * (shared.cast_factor if fp32_surfaces else 1.0) * (IN_A_LOOP if in_a_loop else 1.0)
    costs = _beside_each_other([layer_cost(layer, machine, engine, shared) for layer in layers])
    work = sum(cost.time_s for cost in costs)
    if in_a_loop:
        surfaces = max(0.0, (bytes_in + bytes_out) / engine.weight_bytes_per_s - work)
    else:
        surfaces = (bytes_in + bytes_out) / engine.surface_bytes_per_s
    time = dispatch + surfaces + work
    return ProgramCost(dispatch, surfaces, costs, time, shared.active_w * time + sum(cost.energy_j for cost in costs))


def _beside_each_other(costs: Sequence[LayerCost]) -> tuple[LayerCost, ...]:
    """The unit that takes longer keeps its times, the other's work is hidden."""
    numbers = sum(cost.time_s for cost in costs if cost.bound == "element-wise")
    hides_numbers = sum(cost.time_s for cost in costs) >= 2 * numbers
    return tuple(replace(cost, time_s=0.0) if (cost.bound == "element-wise") is hides_numbers else cost for cost in costs)
