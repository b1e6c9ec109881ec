"""Surfaces of tensors that a graph changes a few rows of, a key-value cache above all: they stay, and the rows that changed are written.

    call 1   cache[:, :, 5] = k   ──► all of the cache is staged               its surface stays, with the tensor's version
    call 2   cache[:, :, 6] = k   ──► row 6 is staged                          the same tensor, and no write but these two
A surface is believed only under the promise (promise.py) under which it was filled, and never after a call that did not end: what PyTorch
computes in its place writes rows of its own.
"""

import math
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchane.mil.types import FP16, TensorType
from torchane.runtime.device import Buffer, Device

#: By how much a tensor's version grows between a call's write and the next call: AOTAutograd copies what a graph wrote onto the
#: tensor that was given, here onto itself, which is counted and moves nothing.
BETWEEN_CALLS = 1


@dataclass(frozen=True)
class Written:
    """Rows that a call has just written into one of its inputs, in place. tensor: refers to it; axis: whose entries are rows; index: which;
    before, after: the tensor's version."""

    tensor: "weakref.ref[Any]"
    axis: int
    index: np.ndarray
    before: int
    after: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """These rows of an array, a copy."""
        return array[self.place]

    @property
    def place(self) -> tuple[Any, ...]:
        return (*[slice(None)] * self.axis, self.index)


@dataclass
class _Filled:
    buffer: Buffer
    promise: object
    tensor: "weakref.ref[Any]"
    version: int
    largest: float


class Rows:
    """Of one compiled graph. A run holds the lock of its weights meanwhile."""

    def __init__(self) -> None:
        self._filled: dict[str, _Filled] = {}
        self._buffers: dict[str, Buffer] = {}

    def known(self, name: str, written: Written, promise: object) -> Buffer | None:
        """The surface that holds all other rows of the tensor."""
        filled = self._filled.get(name)
        is_same = filled is not None and filled.promise is promise and filled.tensor() is written.tensor()
        return filled.buffer if filled is not None and is_same and filled.version + BETWEEN_CALLS == written.before else None

    def surface(self, name: str, shape: tuple[int, ...], device: Device) -> Buffer:
        """For all of a tensor: nobody's until `filled`."""
        self._filled.pop(name, None)
        if name not in self._buffers:
            self._buffers[name] = device.allocate(TensorType(FP16, shape))
        return self._buffers[name]

    def filled(self, name: str, written: Written, promise: object, largest: float) -> float:
        """The surface holds the tensor as it is now; largest: magnitude of what was staged. Gives the largest of all that is there."""
        before = self._filled.get(name)
        most = max(largest, before.largest) if before is not None else largest
        self._filled[name] = _Filled(self._buffers[name], promise, written.tensor, written.after, most)
        return most

    def forget(self) -> None:
        """What is in the surfaces is no longer believed."""
        self._filled = {}

    def free(self) -> None:
        """Frees the surfaces."""
        self._filled, self._buffers = {}, {}


def write_rows(buffer: Buffer, rows: np.ndarray, written: Written, logical: np.ndarray) -> tuple[float, int]:
    """Rounds rows to fp16 into a surface. logical: a view of it in the tensor's shape. Gives the largest magnitude stored, and how many
    are infinite or NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        stored = rows.astype(np.float16)
    logical[written.place] = stored
    magnitudes = np.abs(stored)
    largest = float(magnitudes.max(initial=0))
    if math.isfinite(largest):  # NaN is the largest where there is one
        return largest, 0
    finite = np.isfinite(stored)
    return float(magnitudes.max(initial=0, where=finite)), stored.size - int(np.count_nonzero(finite))


