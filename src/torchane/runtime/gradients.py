"""Gradients of weights that stay where programs wrote them, fp16 and multiplied by the loss scale, for an optimizer of ours.

    backward   dW in a surface ──► param.grad: an fp16 tensor over that surface, and here the factor that makes true numbers of it
    update     reads it, widened and multiplied in the pass of AdamW, and writes the next forward's weight in its place
So no gradient is written as fp32 and read again, and where the weight's own surface is no longer needed the gradient of another one lies there. What holds
a loss scale is no gradient to anybody else: they are made between `wanted` and the update alone, and PyTorch's semantics hold elsewhere.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from torchane.runtime.device import Buffer
from torchane.runtime.surfaces import SurfacePool


class Gradient:
    """A surface that holds one. factor: its numbers times this are the gradient's. The surface goes back to the pool with the last view of it, unless `take`
    was called."""

    def __init__(self, buffer: Buffer, factor: float, pool: SurfacePool):
        self.factor = factor
        self._buffer: Buffer | None = buffer
        self._pool = pool

    def numbers(self) -> np.ndarray:
        """fp16, flat, for reading."""
        assert self._buffer is not None, "the gradient's surface was taken"
        return self._buffer.look().reshape(-1)

    def lend(self, shape: tuple[int, ...]) -> np.ndarray:
        """All of the surface in another shape of as many numbers. No view of what is given may outlive it: NumPy lets that refer to the surface alone."""
        assert self._buffer is not None
        view = self._buffer.array.reshape(shape)
        weakref.finalize(view, self._give_back).atexit = False
        return view

    def take(self, shape: tuple[int, ...]) -> Buffer | None:
        """The surface, whose gradient is read for the last time now, where it has this shape."""
        buffer = self._buffer
        if buffer is None or buffer.type.shape != shape:
            return None
        self._buffer = None
        return buffer

    def _give_back(self) -> None:
        if self._buffer is not None:
            self._pool.give(self._buffer)
            self._buffer = None


class Gradients:
    """Of one compiled graph: those of its last backward, by the address of their numbers."""

    def __init__(self) -> None:
        self.are_wanted = False
        self._known: dict[int, weakref.ref[Gradient]] = {}

    @contextmanager
    def wanted(self, are_wanted: bool = True) -> Iterator[None]:
        """Within it a backward leaves gradients in their surfaces, or it does not."""
        before, self.are_wanted = self.are_wanted, are_wanted
        try:
            yield
        finally:
            self.are_wanted = before

    def keep(self, buffer: Buffer, factor: float, pool: SurfacePool, shape: tuple[int, ...]) -> np.ndarray:
        """A view, in the gradient's shape, of a surface that holds one, as `Gradient.lend` gives it."""
        gradient = Gradient(buffer, factor, pool)
        view = gradient.lend(shape)
        self._known[view.__array_interface__["data"][0]] = weakref.ref(gradient)  # the view's end holds it
        return view

    def at(self, address: int) -> Gradient | None:
        """The gradient whose numbers begin there."""
        found = self._known.get(address)
        return None if found is None else found()

    def forget(self) -> None:
        """They belong to whoever holds their tensors."""
        self._known = {}
