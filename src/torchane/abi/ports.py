"""How a tensor of PyTorch lies in a port: a surface that a program reads or writes.

    logical (B, S, C) ── transpose(perm) ──► (C, B, S) ── reshape ──► (1, C, 1, B*S) | zeros up to the port's width

A port is fp16, of rank 4 and fixed shape, and its last axis is a multiple of 32 (64 bytes): with any
other width engines return zeros or refuse to run. Source: ane-constraints.md, P1 and P2.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from torchane.errors import CompileError
from torchane.mil.types import FP16, TensorType

#: What the last axis of a port is a multiple of, for chips that do not say otherwise.
LAST_AXIS_MULTIPLE = 32

#: A row no longer than this is within what every chip takes as a width (M1: 16384).
_WIDEST_ROW = 16384
#: A longer row is cut before it is padded: what pads it is a matrix of its length times its width (passes/layout).
_LONGEST_PADDED = 2048

Shape4 = tuple[int, int, int, int]


@dataclass(frozen=True)
class PortLayout:
    """Where the elements of a logical tensor lie in a port.

    The first `used` entries of the port's last axis are `array.transpose(perm).reshape(*shape[:3], used)`;
    the rest, if there is any, is zero going in and ignored coming out.
    """

    logical: tuple[int, ...]
    perm: tuple[int, ...]
    shape: Shape4
    used: int

    def __post_init__(self) -> None:
        if sorted(self.perm) != list(range(len(self.logical))):
            raise CompileError(
                f"a port of {self.logical} cannot be stored in the order {self.perm}: name each axis once."
            )
        if len(self.shape) != 4 or not 0 < self.used <= self.shape[3]:
            raise CompileError(f"a port of shape {self.shape} cannot use {self.used} of its last axis: give 4 sizes.")
        if math.prod(self.shape[:3]) * self.used != math.prod(self.logical):
            raise CompileError(
                f"a port of shape {self.shape}, {self.used} of its last axis used, does not hold the "
                f"{math.prod(self.logical)} elements of {self.logical}."
            )

    @property
    def type(self) -> TensorType:
        """The type of the port."""
        return TensorType(FP16, self.shape)

    @property
    def is_padded(self) -> bool:
        return self.used < self.shape[3]

    @property
    def is_own_order(self) -> bool:
        """The port holds the tensor's numbers in torch's order, and nothing else."""
        return not self.is_padded and self.order == tuple(sorted(self.order))

    @property
    def order(self) -> tuple[int, ...]:
        """The logical axes of more than one entry, in the order in which they are stored, slowest first."""
        return tuple(axis for axis in self.perm if self.logical[axis] != 1)

    def is_legal(self, multiple: int = LAST_AXIS_MULTIPLE) -> bool:
        """The width is what engines read and write correctly."""
        return self.shape[3] % multiple == 0

    def stored(self, array: np.ndarray) -> np.ndarray:
        """A logical array in the port's shape; a view where the axes allow it, dtype kept."""
        assert array.shape == self.logical, f"{array.shape} given for a port of {self.logical}"
        dense = array.transpose(self.perm).reshape(*self.shape[:3], self.used)
        return np.pad(dense, [(0, 0)] * 3 + [(0, self.shape[3] - self.used)]) if self.is_padded else dense

    def logical_of(self, surface: np.ndarray) -> np.ndarray:
        """The inverse of `stored`: a view unless the port is padded, dtype kept."""
        assert surface.shape == self.shape, f"a surface of {surface.shape} given for a port of {self.shape}"
        sizes, back = self._unpacked
        return surface[..., : self.used].reshape(sizes).transpose(back)

    @cached_property
    def _unpacked(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(the logical sizes in the order of storage, where each logical axis is among them): asked for at every dispatch."""
        return tuple(self.logical[axis] for axis in self.perm), tuple(self.perm.index(axis) for axis in range(len(self.perm)))


def port_layout(logical: tuple[int, ...], order: tuple[int, ...], multiple: int = LAST_AXIS_MULTIPLE) -> PortLayout:
    """The port for a tensor whose axes of more than one entry are stored in `order`.

    [1, C, 1, S] for what has two runs of axes, runs being axes that are neighbours in both orders. If the
    last size is no multiple, the same bytes in other rows ([1, n/L, 1, L]); failing that, rows padded.
    """
    perm = _whole(logical, order)
    runs = _sizes(logical, order)
    shape = _four(runs)
    if shape[3] % multiple == 0:
        return PortLayout(logical, perm, shape, shape[3])
    row = _row_of(math.prod(logical), runs, multiple)
    if row is not None:
        return PortLayout(logical, perm, (1, math.prod(logical) // row, 1, row), row)
    rows, used = math.prod(shape[:3]), shape[3]
    if used > _LONGEST_PADDED:
        used = _short_row_of(rows * used, multiple)
        rows = math.prod(logical) // used
    width = -(-used // multiple) * multiple
    return PortLayout(logical, perm, (1, 1, rows, width) if rows <= _WIDEST_ROW else (1, rows, 1, width), used)


def weight_port_layout(logical: tuple[int, ...], multiple: int = LAST_AXIS_MULTIPLE) -> PortLayout:
    """The port of a trained tensor or its gradient: (O, I) as [1, 1, O, I], (C,) as [1, 1, 1, C].

    A matrix whose I is no multiple is stored as [1, 1, I, O] if O is one.
    """
    order = tuple(axis for axis, size in enumerate(logical) if size != 1)
    sizes = [logical[axis] for axis in order]
    if len(order) == 2 and sizes[1] % multiple and sizes[0] % multiple == 0:
        order, sizes = order[::-1], sizes[::-1]
    if sizes and len(sizes) <= 4 and sizes[-1] % multiple == 0:
        shape = (*(1,) * (4 - len(sizes)), *sizes)
        return PortLayout(logical, _whole(logical, order), shape, sizes[-1])  # type: ignore[arg-type]
    return port_layout(logical, order, multiple)


def _whole(logical: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    """`order` with the axes of one entry in places where they change nothing: natural if it can be."""
    if list(order) == sorted(order):
        return tuple(range(len(logical)))
    return (*(axis for axis, size in enumerate(logical) if size == 1), *order)


def _sizes(logical: tuple[int, ...], order: tuple[int, ...]) -> list[int]:
    """The sizes of the stored axes; neighbours in both orders become one, unless the order is torch's own."""
    if list(order) == sorted(order):
        return [logical[axis] for axis in order]
    sizes: list[int] = []
    position = {axis: index for index, axis in enumerate(sorted(order))}
    for before, axis in zip((None, *order), order):
        if before is not None and position[axis] == position[before] + 1:
            sizes[-1] *= logical[axis]
        else:
            sizes.append(logical[axis])
    return sizes


def _four(sizes: list[int]) -> Shape4:
    """Sizes in rank 4: [1, 1, 1, a], [1, a, 1, b], [1, a, b, c], and the first ones joined where there are more."""
    if len(sizes) < 2:
        return (1, 1, 1, sizes[0] if sizes else 1)
    if len(sizes) == 2:
        return (1, sizes[0], 1, sizes[1])
    return (1, math.prod(sizes[:-2]), sizes[-2], sizes[-1])


def _short_row_of(size: int, multiple: int) -> int:
    """The length of rows that cut `size` elements evenly and take the least memory, padded, with the matrix that pads them."""

    def taken(row: int) -> int:
        return (size // row + row) * -(-row // multiple) * multiple

    return min((row for row in range(1, _LONGEST_PADDED + 1) if size % row == 0), key=taken)


def _row_of(size: int, runs: list[int], multiple: int) -> int | None:
    """The length of rows that cut `size` elements evenly: the last axes together, else the longest that fits."""
    if size % multiple:
        return None
    row = 1
    for run in reversed(runs):
        row *= run
        if row > _WIDEST_ROW:
            break
        if row % multiple == 0:
            return row
    longest = min(size, _WIDEST_ROW) // multiple
    return multiple * next(count for count in range(longest, 0, -1) if (size // multiple) % count == 0)
