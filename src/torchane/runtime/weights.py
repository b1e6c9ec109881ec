"""Surfaces of parameters: one for each, as long as the model lives, and whose numbers are in it.

    a forward      stages every weight that it reads           version: the number of that run
    its backward   reads what the forward staged, where the version is still the forward's (`Copy.is_kept`), and stages the rest
PyTorch changes parameters in ways that leave no trace (fused optimizers, `.data`, NumPy views): the next forward stages all anew. A backward
whose surfaces another run has filled since stages again, from the tensors that autograd saved. `read` gives a surface to the run whose
numbers it holds, and to no other.
An optimizer of ours writes the rounded weight beside the weight itself (`Place`); the next forward takes it over where the tensor is
the one that was written and PyTorch counted no write since. A backward whose gradients stay in surfaces (gradients.py) gives back the surface of a weight that
it is done with; the optimizer then writes the next weight where the gradient was.
"""

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from torchane.runtime.device import Buffer
from torchane.runtime.gradients import Gradient, Gradients
from torchane.runtime.range_control import Placed
from torchane.runtime.surfaces import Held

FP32 = 4  # bytes

_RUNS = itertools.count(1)


class StaleWeightError(AssertionError):
    """A program was about to read numbers that another run staged: an error of torchane's."""


@dataclass(frozen=True)
class Place:
    """Where an optimizer may write a weight, or a block of one, rounded. address: of its numbers, so many. buffer: where its gradient lies and is read
    meanwhile; None for the weight's own surface."""

    weights: "Weights"
    name: str
    address: int
    size: int
    buffer: Buffer | None = None

    def open(self) -> np.ndarray:
        """The surface as a flat array, which nobody reads until `wrote`."""
        buffer = self.weights.take(self.name) if self.buffer is None else self.buffer
        self.weights.ahead[self.name] = buffer, self.address, None
        return self.weights.ahead[self.name][0].array.reshape(-1)

    def wrote(self, count: int) -> None:
        """It holds the tensor's numbers. count: of PyTorch's writes to the tensor so far."""
        self.weights.ahead[self.name] = self.weights.ahead[self.name][0], self.address, count


class Weights:
    """Of one compiled graph, forward and backward. lock: held by a run from its first step to its last, since runs share the surfaces."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.held: dict[str, Held] = {}
        self.ahead: dict[str, tuple[Buffer, int, int | None]] = {}  # written by an optimizer: surface, the tensor's address, its count of writes
        self._sources: dict[tuple[int, int], str] = {}  # by a tensor's address and size: what holds its numbers in its order
        self.latest = 0  # grows with every run that stages, of this graph or another: the graph that ran last has the largest
        self.gradients = Gradients()
        self._shapes: dict[str, tuple[int, ...]] = {}  # of surfaces that a backward gave back
        self._versions = itertools.count(1)

    def new_version(self) -> int:
        """The number of a run that stages."""
        self.latest = next(_RUNS)
        return next(self._versions)

    def holding(self, name: str, version: int) -> Held | None:
        """A weight's surface, if it still holds what that run staged."""
        held = self.held.get(name)
        return held if held is not None and held.version == version else None

    def surface(self, name: str, shape: tuple[int, ...], new: Callable[[tuple[int, ...]], Buffer]) -> Buffer:
        """For staging: whose numbers it holds is nobody's until `staged` says so. new: makes one of that shape."""
        known = name in self.held or name in self.ahead
        return self.take(name) if known else new(shape)

    def done_with(self, name: str, version: int) -> Buffer | None:
        """The surface of a weight that nothing reads any more before it is staged again; None where another run has filled it."""
        if self.holding(name, version) is None:
            return None
        buffer = self.held.pop(name).buffer
        self._shapes[name] = buffer.type.shape  # type: ignore[assignment]
        return buffer

    def take(self, name: str) -> Buffer:
        """The surface that there is; nobody reads it until it is staged again."""
        held, ahead = self.held.pop(name, None), self.ahead.pop(name, None)
        if held is not None:
            return held.buffer
        assert ahead is not None, f"{name} has no surface"
        return ahead[0]

    def mirrors(self, name: str, address: int, size: int) -> None:
        """The surface that is being staged will hold a tensor's numbers as they lie in memory, unscaled."""
        self._sources[address, size] = name

    def places_of(self, address: int, size: int, gradient: Gradient | None = None) -> list[Place]:
        """Where an optimizer may write a dense tensor of so many numbers, or blocks of it: in its surface, or where that was given back, over its gradient."""
        name = self._sources.get((address, size))
        if name is None:
            end = address + FP32 * size
            blocks = sorted((start, count, name) for (start, count), name in self._sources.items() if address <= start and start + FP32 * count <= end)
            return [Place(self, name, start, count) for start, count, name in blocks if name in self.held or name in self.ahead]
        if name in self.held or name in self.ahead:
            return [Place(self, name, address, size)]
        buffer = gradient.take(self._shapes[name]) if gradient is not None and name in self._shapes else None
        return [] if buffer is None else [Place(self, name, address, size, buffer)]

    def take_over(self, name: str, identity: tuple[int, int] | None, version: int, lying: Placed) -> Held | None:
        """The surface, if an optimizer has written the present numbers of the tensor of this identity (Host.identity) there; it counts as what this run staged."""
        buffer, address, count = self.ahead[name]
        if identity is None or (address, count) != identity:
            return None
        del self.ahead[name]
        held = self.held[name] = Held(buffer, version, lying)
        return held

    def staged(self, name: str, buffer: Buffer, version: int, lying: Placed) -> None:
        self.held[name] = Held(buffer, version, lying)

    def read(self, name: str, version: int) -> Held:
        """Raises StaleWeightError unless it holds what that run staged."""
        held = self.held.get(name)
        if held is None or held.version != version:
            there = "nothing" if held is None else f"what run {held.version} staged"
            raise StaleWeightError(f"{name}: run {version} is about to read it, and its surface holds {there}.")
        return held

    def forget(self) -> list[Buffer]:
        """Lets go of the surfaces, which go back to where they were made. A backward that waits for its turn stages again."""
        surfaces = [held.buffer for held in self.held.values()] + [buffer for buffer, _, _ in self.ahead.values()]
        self.held, self.ahead, self._sources, self._shapes = {}, {}, {}, {}
        return surfaces
