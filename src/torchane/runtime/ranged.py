"""A range-controlled dispatch on a device: the multiplier port is filled, the program runs, what it says is read.

Besides the statistics port the outputs themselves are looked at, here on the host: what leaves need not be measured in
the program.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from torchane import native
from torchane.abi.numbers import MASKED
from torchane.abi.ranges import Ranges
from torchane.errors import NumericsError
from torchane.plan import Copy
from torchane.runtime.confirm import confirmed
from torchane.runtime.device import Buffer, Device, LoadedProgram
from torchane.runtime.observers import RunProgram
from torchane.runtime.range_control import (
    ACTIVATIONS,
    GRADIENTS,
    LEAST_ACTIVATION,
    MOST_ACTIVATION,
    WEIGHTS,
    DispatchRanges,
    Placed,
    controlled,
    placed_at,
    size_of,
)
from torchane.runtime.surfaces import SurfacePool


def staged_at(copy: Copy, source: np.ndarray, is_gradient: bool) -> Placed:
    """Where a host value is placed: by its own largest magnitude. A mask, and what is unscaled, stays as it is."""
    largest = largest_of(source)
    if copy.is_unscaled or ((copy.is_mask or copy.masks) and largest >= -MASKED):
        return Placed(0, size_of(largest))
    if copy.is_weight:
        return placed_at(largest, WEIGHTS)
    if is_gradient:
        return placed_at(largest, GRADIENTS)
    return placed_at(largest, ACTIVATIONS, LEAST_ACTIVATION, MOST_ACTIVATION)


def largest_of(array: np.ndarray) -> float:
    """The largest magnitude; inf where one is not a number."""
    if array.size == 0:
        return 0.0
    largest = max(float(array.max()), -float(array.min()))
    return largest if np.isfinite(largest) else float("inf")


def dispatch_in_range(
    run_program: RunProgram,
    device: Device,
    pool: SurfacePool,
    loaded: LoadedProgram,
    ranges: Ranges,
    state: DispatchRanges,
    inputs: Sequence[Buffer],
    outputs: Sequence[Buffer],
    placed: Sequence[Placed],
    where: str,
    like: DispatchRanges | None = None,
) -> list[Placed]:
    """Runs a program until it is in range; how its outputs lie. like: see `controlled`.
    Raises NumericsError where nothing helps."""
    multipliers = [pool.take(ranges.multiplier_type.shape)] if ranges.multipliers else []  # type: ignore[arg-type]
    statistics = [pool.take(ranges.statistics_type.shape)] if ranges.rows else []  # type: ignore[arg-type]

    def run(powers: Sequence[int]) -> tuple[list[float], list[float]]:
        for port in multipliers:
            port.array[0, :, 0, :] = np.ldexp(1.0, np.asarray(powers))[:, None]
        given, results = [*inputs, *multipliers], [*outputs, *statistics]
        run_program(loaded, given, results)
        scans = confirmed(device, loaded, given, results, [native.scan(buffer.look()) for buffer in results])
        rows = [float(value) for port in statistics for value in port.look()[0, :, 0, 0]]
        return rows, [float("inf") if missing else largest for largest, missing, _, _ in scans[: len(outputs)]]

    try:
        return controlled(ranges, state, placed, run, where, like)
    finally:
        for port in (*multipliers, *statistics):
            pool.give(port)


def placed_for(name: str, kept: Mapping[str, set[int]], array: np.ndarray) -> Placed:
    """How a saved value lies that a hook has moved elsewhere: known if it has always lain like that."""
    exponents = kept.get(name, set())
    if len(exponents) != 1:
        raise NumericsError(
            f"The saved value {name} was moved by a hook (saved_tensors_hooks, save_on_cpu), and the power of two that it is "
            f"stored under has changed since ({sorted(exponents)}), so it can no longer be read. Compile with "
            'options={"ranges": "off"}, or leave saved tensors where they are.'
        )
    (exponent,) = exponents
    size = size_of(largest_of(array))
    return Placed(exponent, None if size is None else size - exponent)
