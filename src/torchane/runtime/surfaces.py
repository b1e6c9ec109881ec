"""Surfaces that come and go: a pool per device, so that a step allocates nothing after the first.

A surface that leaves a plan (an activation saved for the backward pass) is held by whoever holds its
tensor; when the last holder lets go, it returns to the pool. `find` gives the surface back from the
address that a tensor has.
"""

import threading
import weakref
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from torchane.mil.types import FP16, TensorType
from torchane.runtime.device import Buffer, Device
from torchane.runtime.range_control import Placed


@dataclass(frozen=True)
class Held:
    """A surface whose numbers outlive the run that made them. version: the number of that run; a backward takes over its forward's.
    lying: how the numbers lie."""

    buffer: Buffer
    version: int
    lying: Placed


class _Loan(weakref.ref[np.ndarray]):
    """A view that was lent."""

    address: int
    held: Held


class SurfacePool:
    """Free surfaces by shape. Thread-safe: autograd runs backward graphs in a thread of its own."""

    def __init__(self, device: Device):
        self.device = device
        self._free: defaultdict[tuple[int, ...], list[Buffer]] = defaultdict(list)
        self._lent: dict[int, _Loan] = {}
        self._lock = threading.RLock()  # a lent view may die while this thread is inside
        self.allocated_bytes = 0

    def take(self, shape: tuple[int, ...]) -> Buffer:
        """A surface of fp16, its contents whatever was there."""
        return self.take_all((shape,))[0]

    def take_all(self, shapes: Sequence[tuple[int, ...]]) -> list[Buffer]:
        """One of each shape."""
        free = self._free
        with self._lock:
            return [free[shape].pop() if free.get(shape) else self._allocate(shape) for shape in shapes]

    def _allocate(self, shape: tuple[int, ...]) -> Buffer:
        type_ = TensorType(FP16, shape)
        buffer = self.device.allocate(type_)
        self.allocated_bytes += type_.size_bytes
        return buffer

    def give(self, buffer: Buffer) -> None:
        """Takes a surface back."""
        self.give_all((buffer,))

    def give_all(self, buffers: Iterable[Buffer]) -> None:
        """Takes surfaces back."""
        with self._lock:
            for buffer in buffers:
                self._free[buffer.type.shape].append(buffer)  # type: ignore[index]

    def trim(self) -> None:
        """Frees the surfaces that nothing holds; `take` allocates anew."""
        with self._lock:
            free, self._free = self._free, defaultdict(list)
            self.allocated_bytes -= sum(buffer.type.size_bytes for buffers in free.values() for buffer in buffers)

    def lend(self, held: Held, view: np.ndarray, address: int) -> None:
        """A view of all of a surface is for the outside. The surface comes back by itself once nothing refers to the view. address: where it begins."""
        loan = _Loan(view, self._return)
        loan.address, loan.held = address, held
        with self._lock:
            self._lent[address] = loan

    def find(self, address: int) -> Held | None:
        """The lent surface whose memory begins at an address."""
        with self._lock:
            loan = self._lent.get(address)
        return None if loan is None else loan.held

    def _return(self, loan: weakref.ref[np.ndarray]) -> None:
        assert isinstance(loan, _Loan)
        with self._lock:
            del self._lent[loan.address]
        self.give(loan.held.buffer)
