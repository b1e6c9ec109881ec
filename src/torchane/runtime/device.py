"""What every device does: take MIL text, keep surfaces, run programs.

    text, blobs ──load──► LoadedProgram ──run(inputs, outputs)──► surfaces      run = submit, then wait
    TensorType ──allocate──► Buffer

A device is handed what an engine would be handed: the text and the bytes of the weight files. It
refuses with a DeviceError that names the program. `run` takes buffers in the order in which the
program declares its ports. The twin and the engine keep this one contract and pass one test suite.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from torchane.errors import DeviceError
from torchane.mil.ir import Program
from torchane.mil.types import FP16, TensorType


class Buffer(Protocol):
    """Memory that a device and the host both see: one port's surface."""

    type: TensorType

    @property
    def capacity_bytes(self) -> int:
        """What the memory holds: the type's bytes or more."""
        ...

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


@dataclass(frozen=True)
class Limits:
    """What a device takes; None where there is no end. loaded_programs: that have a place on it at once. ports: of one program, inputs
    and outputs together. row_multiple: the last axis of every port is a multiple of it."""

    loaded_programs: int | None = None
    ports: int | None = None
    row_multiple: int = 1

    def require(self, program: str, ports: Mapping[str, TensorType]) -> None:
        """Raises DeviceError, which names program and port. ports: by their names in the text."""
        if self.ports is not None and len(ports) > self.ports:
            raise DeviceError(f"{program}: it has {len(ports)} ports, and a dispatch takes {self.ports} surfaces.")
        for name, port in ports.items():
            width = port.shape[-1] if port.shape else 0
            if width % self.row_multiple:  # type: ignore[operator]
                raise DeviceError(
                    f"{program}: the port {name} is {port}, and its last axis must be a multiple of {self.row_multiple}: with other rows "
                    "engines give zeros or refuse to run. Pad it."
                )


#: A run that was submitted.
Submitted = Future[None]


class Device(Protocol):
    """An engine, or what stands in for it.

    arithmetic: the rules that its numbers follow, "exact" or "engine" (mil/engine). loaded: how many programs have a place on it.
    wrong_ops: ops whose numbers were found wrong on this machine, and what was found; programs do without. respell: writes a program in
    other ops, for one whose numbers are wrong; handed in by the compiler, which the runtime does without. may_err: whether its numbers may be
    wrong although the program is right, so that what looks wrong is to be confirmed. frees_processor: a run leaves the processor to the host, whose
    work may go on meanwhile.
    """

    name: str
    arithmetic: str
    may_err: bool
    frees_processor: bool
    wrong_ops: Mapping[str, str]
    respell: Callable[[Program], Program] | None

    @property
    def limits(self) -> Limits: ...

    @property
    def loaded(self) -> int: ...

    def load(self, text: str, blobs: Mapping[str, bytes], *, name: str = "main") -> LoadedProgram:
        """Compiles MIL text; blobs maps the text's BLOBFILE paths to whole files. Raises DeviceError.

        Where `limits.loaded_programs` have a place already, it gets one at its first run, and the one used longest ago gives up its own.
        """
        ...

    def allocate(self, type: TensorType, *, capacity_bytes: int = 0) -> Buffer:
        """A surface, its contents zero, in memory of at least so many bytes. Raises DeviceError for other types than fp16 of fixed shape."""
        ...

    def run(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> None:
        """Runs to completion or raises DeviceError. An output may not share memory with an input."""
        ...

    def confirm(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> bool:
        """After a run, with its surfaces, where an output holds infinities or NaN, or nothing but zeros: whether it was the device that erred.
        The outputs then hold right numbers now."""
        ...

    def submit(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> Submitted:
        """Begins a run and comes back. Runs are carried out in the order in which they were submitted; until `wait` the surfaces are
        the device's."""
        ...

    def wait(self, submitted: Submitted) -> None:
        """Until that run is done. Raises its DeviceError, and for runs submitted behind one that failed, which are not carried out."""
        ...

    def unload(self, program: LoadedProgram) -> None:
        """Gives back what the program holds on the device. A later run loads it again."""
        ...


def require_surface(type_: object, what: str) -> None:
    """Raises DeviceError for what no surface is."""
    if not isinstance(type_, TensorType) or type_.dtype is not FP16 or not type_.is_fixed:
        raise DeviceError(f"{what} is a {type_}; the twin computes with fp16 tensors of fixed shape, as an engine does.")
