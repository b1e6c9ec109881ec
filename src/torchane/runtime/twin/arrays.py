"""Where the twin's values lie: dense fp16 arrays within pieces of memory.

A Root is one piece: of the scratch arena, the constants, an input or an output. An Array is a dense part of
a root with a shape; a reshape, or a slice of the outermost axis, is another Array of the same root.
Sizes, strides and offsets count numbers, as csrc/steps.h has them.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

Shape = tuple[int, ...]

SCRATCH, CONSTANTS, FIRST_PORT = 0, 1, 2


@dataclass(eq=False)
class Root:
    """A piece of memory; `offset` within a space of the tape is settled last, for scratch by `arena.py`."""

    size: int
    space: int = SCRATCH
    offset: int = 0
    writers: list["TapeStep"] = field(default_factory=list)
    readers: list["TapeStep"] = field(default_factory=list)


@dataclass(frozen=True)
class Array:
    root: Root
    shape: Shape
    offset: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def place(self) -> tuple[int, int]:
        return (self.root.space, self.root.offset + self.offset)

    @property
    def is_whole(self) -> bool:
        """Covers its root."""
        return self.offset == 0 and self.size == self.root.size

    def reshaped(self, shape: Shape) -> "Array":
        return replace(self, shape=shape)


class TapeStep(Protocol):
    """What a tape does at once. `key` orders the steps; `ops` names the MIL ops that it computes; `aside` is scratch that it may need meanwhile."""

    key: int
    ops: list[str]

    @property
    def reads(self) -> tuple[Array, ...]: ...
    @property
    def writes(self) -> tuple[Array, ...]: ...
    @property
    def aside(self) -> tuple[Array, ...]: ...
    def emit(self, tape: Any) -> None: ...


def new(shape: Shape) -> Array:
    """An array in a piece of scratch of its own."""
    return Array(Root(math.prod(shape)), shape)


def dense_strides(shape: Shape) -> Shape:
    strides = []
    stride = 1
    for size in reversed(shape):
        strides.append(stride)
        stride *= size
    return tuple(reversed(strides))


def broadcast_strides(shape: Shape, to: Shape) -> Shape:
    """The strides with which a dense array of `shape` is read as if it had the shape `to`."""
    padded = (1,) * (len(to) - len(shape)) + shape
    return tuple(
        0 if size == 1 else stride for size, stride in zip(padded, dense_strides(padded), strict=True)
    )
