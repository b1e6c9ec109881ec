"""What a program takes on an engine: seconds and joules, part by part. Few constants, fitted to published figures.

    time = dispatch (longer where surfaces are fp32 and cast inside)
         + sum over layers of max(arithmetic, streaming of weights)
         + bytes of surfaces / surface bandwidth
    arithmetic   flops / (peak of the clock * columns / (columns + columns_half))
    streaming    weights that no core can keep, read once for every `tile_columns` columns of a matmul, / weight bandwidth
    energy       active watts * time + flops + weight bytes read

What a core keeps (64 KiB), the peak, the rate of element-wise work and the slow multiples of 1 MiB are published facts, not
fitted. docs/cost-model.md has the split, the errors and what is not understood; scripts/fit_cost_model.py fits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torchane.chips.points import CORES, Layer, Machine

#: Weights of a layer that each core keeps; what exceeds it is streamed (GDE M1, MDX M4 part 4).
RESIDENT_BYTES_PER_CORE = 64 * 1024
#: Weights of a core that are an exact multiple of this stream slowly, on these generations (Yoon M3, LED M4, MDX PR40 M4 Max).
SLOW_MULTIPLE_BYTES = 1 << 20
SLOW_CHIPS = frozenset({"m3", "m4"})
#: How much slower: 1.45 (LED M4, 2 MiB), 1.84 (LED M4), 2.1 to 2.9 (PR40 M4 Max), 2.66 (Yoon M3); their geometric mean.
SLOW_FACTOR = 2.2
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
    """One run of a program. time_s = dispatch_s + sum of layers + surfaces_s; energy likewise, of the engine's rail."""

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
        slow = reads == 1 and layer.form != "matmul" and is_slow_multiple(layer, machine)
    streaming = streamed / engine.weight_bytes_per_s * (SLOW_FACTOR if slow else 1.0)
    energy = shared.joule_per_flop * layer.flops + shared.joule_per_weight_byte * max(streamed, layer.count * layer.weight_bytes)
    bound = "weights" if streaming > arithmetic else "arithmetic"
    return LayerCost(max(arithmetic, streaming), bound, streamed, energy, slow)


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
) -> ProgramCost:
    """One run of a program of these layers between surfaces of that many bytes."""
    dispatch = dispatches * engine.dispatch_s * (shared.cast_factor if fp32_surfaces else 1.0)
    surfaces = (bytes_in + bytes_out) / engine.surface_bytes_per_s
    costs = tuple(layer_cost(layer, machine, engine, shared) for layer in layers)
    time = dispatch + surfaces + sum(cost.time_s for cost in costs)
    return ProgramCost(dispatch, surfaces, costs, time, shared.active_w * time + sum(cost.energy_j for cost in costs))
