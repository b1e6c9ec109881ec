"""Gradients of weights that stay where programs wrote them, fp16 and multiplied by the loss scale, for an optimizer of ours.

    backward   dW in a surface ──► param.grad: an fp16 tensor over that surface, and here the factor that makes true numbers of it
    update     reads it, widened and multiplied in the pass of AdamW, and writes the next forward's weight in its place
So no gradient is written as fp32 and read again, and where the weight's own surface is no longer needed the gradient of another one lies there.
A gradient that several programs write has one surface, of which each is given a part. Rows that the host adds to one, those of an embedding in a tied table,
lie beside it in fp32. What holds a loss scale is no gradient to anybody else: they are made between `wanted` and the update alone, and PyTorch's semantics hold
elsewhere.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from torchane import native
from torchane.mil.types import TensorType
from torchane.runtime.device import Buffer
from torchane.runtime.surfaces import SurfacePool

#: As native.sum_of_squares and native.adamw take it: fp32, or fp16 and what it is multiplied by.
Piece = np.ndarray | tuple[np.ndarray, float]


#: A row of its own takes as long as so many numbers of the whole take to be widened once.
ROW_COSTS = 4096


@dataclass(frozen=True)
class Lying:
    """Where a program's output lies in a gradient that several write: whose gradient, from which number on, of how many, in whose shape."""

    whole: str
    begin: int
    size: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PartOfSurface:
    """A part of a surface in the memory of the host, as a surface."""

    type: TensorType
    array: np.ndarray

    @property
    def capacity_bytes(self) -> int:
        return self.array.nbytes

    def look(self) -> np.ndarray:
        return self.array


class Gradient:
    """A surface that holds one, dense, in its own order. Its numbers, times the factor of their part, are the gradient's. The surface goes back to the pool with
    the last view of it, unless `take` was called."""

    def __init__(self, buffer: Buffer, pool: SurfacePool):
        self._buffer = buffer
        self._pool = pool
        self._is_taken = False
        self._factors: dict[int, tuple[int, float]] = {}  # by where a part begins: where it ends, its factor
        self._rows: dict[int, np.ndarray] = {}  # what else there is of a row, true numbers
        self._row = 1
        self._whole: np.ndarray | None = None  # true numbers of all of it, where many rows have some of their own

    def holds(self, factor: float, begin: int = 0, end: int | None = None) -> None:
        """A part is written, all of it if nothing is said. factor: its numbers times this are the gradient's."""
        self._factors[begin] = self._buffer.array.size if end is None else end, factor

    def part(self, begin: int, type: TensorType) -> Buffer:
        """For a program to write: as many numbers as the type has, from this one on."""
        return PartOfSurface(type, self._buffer.array.reshape(-1)[begin : begin + type.size].reshape(type.shape))  # type: ignore[arg-type]

    def add_rows(self, rows: np.ndarray, added: np.ndarray) -> None:
        """rows (N,): which, each once, as long as those of added (N, C) float32, which is added to the gradient."""
        self._row = added.shape[1]
        if self._whole is None and len(rows) * ROW_COSTS > self._buffer.array.size:
            self._whole = self._widened()
        if self._whole is not None:
            self._whole.reshape(-1, self._row)[rows] += added
            return
        starts = sorted(self._factors)
        factors = np.array([self._factors[start][1] for start in starts], np.float32)[np.searchsorted(starts, rows * self._row, "right") - 1]
        numbers = self._numbers().reshape(-1, self._row)[rows].astype(np.float32) * factors[:, None]
        for index, row in enumerate(rows.tolist()):
            if row in self._rows:
                numbers[index] = self._rows[row]
        numbers += added
        self._rows.update(zip(rows.tolist(), numbers, strict=True))

    def pieces(self, begin: int = 0, end: int | None = None) -> list[Piece]:
        """The gradient's numbers from one to another, in order, for reading."""
        if self._whole is not None:
            return [self._whole[begin:end]]
        whole, found = self._numbers(), list[Piece]()
        if not self._rows and len(self._factors) == 1:
            return [(whole[begin:end], self._factors[0][1])]
        end = whole.size if end is None else end
        rows = sorted(row * self._row for row in self._rows if begin <= row * self._row < end)
        for start, (stop, factor) in sorted(self._factors.items()):
            start, stop = max(start, begin), min(stop, end)
            for row in (row for row in rows if start <= row < stop):
                found += [(whole[start:row], factor), self._rows[row // self._row]]
                start = row + self._row
            found.append((whole[start:stop], factor))
        return found

    def _widened(self) -> np.ndarray:
        whole, begin = np.empty(self._buffer.array.size, np.float32), 0
        for piece in self.pieces():
            numbers, factor = piece if isinstance(piece, tuple) else (piece, None)
            to = whole[begin : (begin := begin + numbers.size)]
            if factor is None:
                to[...] = numbers
            else:
                native.unstage(to, numbers, factor)
        return whole

    def _numbers(self) -> np.ndarray:
        return self._buffer.look().reshape(-1)

    def lend(self, shape: tuple[int, ...]) -> np.ndarray:
        """All of the surface in another shape of as many numbers. No view of what is given may outlive it: NumPy lets that refer to the surface alone."""
        view = self._buffer.array.reshape(shape)
        weakref.finalize(view, self._give_back).atexit = False
        return view

    def take(self, shape: tuple[int, ...]) -> Buffer | None:
        """The surface, which is the caller's now, where it has this shape. The gradient is there until it is written."""
        if self._is_taken or self._buffer.type.shape != shape:
            return None
        self._is_taken = True
        return self._buffer

    def _give_back(self) -> None:
        if not self._is_taken:
            self._pool.give(self._buffer)


#: All that are there, by the address of their numbers.
_known: weakref.WeakValueDictionary[int, Gradient] = weakref.WeakValueDictionary()


def gradient_at(address: int) -> Gradient | None:
    """The gradient in a surface whose numbers begin there."""
    return _known.get(address)


class Gradients:
    """Of one compiled graph: whether its backward leaves them in surfaces."""

    def __init__(self) -> None:
        self.are_wanted = False

    @contextmanager
    def wanted(self, are_wanted: bool = True) -> Iterator[None]:
        """Within it a backward leaves gradients in their surfaces, or it does not."""
        before, self.are_wanted = self.are_wanted, are_wanted
        try:
            yield
        finally:
            self.are_wanted = before


def keep(gradient: Gradient, shape: tuple[int, ...]) -> np.ndarray:
    """A view of it in this shape, as `Gradient.lend` gives it; from now on `gradient_at` knows it, as long as the view is there."""
    view = gradient.lend(shape)
    _known[view.__array_interface__["data"][0]] = gradient  # the view's end holds it
    return view
