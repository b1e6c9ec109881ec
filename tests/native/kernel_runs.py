"""Runs a program on the twin, and measures distances in fp16."""

import numpy as np

from torchane.mil.ir import Program
from torchane.runtime.twin import TwinDevice, TwinProgram, load_program


def loaded(program: Program) -> tuple[TwinDevice, TwinProgram]:
    return TwinDevice(), load_program(program, "test")


def run(program: Program, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of a program whose constants are inline, on a twin of its own."""
    device, ready = loaded(program)
    given = [device.allocate(type_) for type_ in ready.inputs]
    for buffer, array in zip(given, inputs, strict=True):
        buffer.array[...] = array
    results = [device.allocate(type_) for type_ in ready.outputs]
    for buffer in results:
        buffer.array[...] = np.nan  # what a kernel leaves out is seen
    device.run(ready, given, results)
    return [buffer.array for buffer in results]


def halves(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (rng.standard_normal(shape) * scale).astype(np.float16)


def ulps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many fp16 numbers lie between a and b; NaNs agree with NaNs."""

    def place(x: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(x, np.float16).view(np.int16).astype(np.int32)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    both_nan = np.isnan(a) & np.isnan(b)
    one_nan = np.isnan(a) ^ np.isnan(b)
    return np.where(both_nan, 0, np.where(one_nan, 99999, np.abs(place(a) - place(b))))
