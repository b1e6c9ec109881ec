"""What every device does: take MIL text, keep surfaces, run programs.

    text, blobs ──load──► LoadedProgram ──run(inputs, outputs)──► surfaces
    TensorType ──allocate──► Buffer

A device is handed what an engine would be handed: the text and the bytes of the weight files. It
refuses with a DeviceError that names the program. `run` takes buffers in the order in which the
program declares its ports. The twin and the engine keep this one contract and pass one test suite.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from torchane.mil.types import TensorType


class Buffer(Protocol):
    """Memory that a device and the host both see: one port's surface."""

    type: TensorType

    @property
    def array(self) -> np.ndarray:
        """A writable view in the port's shape and dtype, dense, row-major, 64-byte aligned."""
        ...

    def look(self) -> np.ndarray:
        """The same for reading only: a device that keeps count of what the host wrote does not count this."""
        ...


@dataclass(frozen=True)
class ProgramStats:
    """What one run of a loaded program executes, counted by the device from the text it parsed."""

    ops: int
    float_ops: Mapping[str, int]
    macs: int
    constant_bytes: int
    scratch_bytes: int


class LoadedProgram(Protocol):
    """The compiled form of a program on one device."""

    name: str
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    stats: ProgramStats


class Device(Protocol):
    """An engine, or what stands in for it."""

    name: str
    arithmetic: str
    """The rules that its numbers follow: "exact" or "engine" (mil/engine)."""

    def load(self, text: str, blobs: Mapping[str, bytes], *, name: str = "main") -> LoadedProgram:
        """Compiles MIL text; blobs maps the text's BLOBFILE paths to whole files. Raises DeviceError."""
        ...

    def allocate(self, type: TensorType) -> Buffer:
        """A surface, its contents zero."""
        ...

    def run(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> None:
        """Runs to completion or raises DeviceError. An output may not share memory with an input."""
        ...

    def unload(self, program: LoadedProgram) -> None:
        """Gives back what the program holds on the device. A later run loads it again."""
        ...
