"""Reads FlatBuffers of which only some fields are known, never past their bytes.

    table ── offset back to its vtable: size, size of the table, then one u16 place per field (0: absent)
A FlatBuffer names no types, so the reader says what it expects, and what lies elsewhere is refused. Offsets may lead
to one place many times; what is read in all is limited by a budget of a few times the file.
Source: flatbuffers.dev, Internals.
"""

import struct
from collections.abc import Callable
from typing import TypeVar

from torchane.inspect.errors import FormatError

_T = TypeVar("_T")
_BUDGET = 4
_LEAST_BUDGET = 1024


class FlatBuffer:
    """The bytes of a file; `root()` is its first table."""

    def __init__(self, data: bytes, path: str):
        self.data = data
        self.path = path
        self._left = _BUDGET * len(data) + _LEAST_BUDGET

    def root(self) -> "Table":
        return Table(self, self.follow(0))

    def unpack(self, layout: str, start: int) -> int:
        size = struct.calcsize(layout)
        self.spend(size, start)
        if start < 0 or start + size > len(self.data):
            place = min(max(start, 0), len(self.data))
            raise FormatError(f"{size} bytes are needed past the file's {len(self.data):,}.", place, self.path)
        return struct.unpack_from(layout, self.data, start)[0]

    def follow(self, start: int) -> int:
        """Where the offset at `start` leads."""
        target = start + self.unpack("<I", start)
        if target == start or target >= len(self.data):
            raise FormatError(f"an offset leads to byte {target:,} of {len(self.data):,}.", start, self.path)
        return target

    def string(self, start: int) -> str:
        size = self.unpack("<I", start)
        if start + 4 + size > len(self.data):
            raise FormatError(f"a text of {size:,} bytes leaves the file.", start, self.path)
        self.spend(size, start)
        return self.data[start + 4 : start + 4 + size].decode("utf-8", "backslashreplace")

    def vector(self, start: int, read: Callable[[int], _T]) -> tuple[_T, ...]:
        """What the offsets of a vector at `start` lead to."""
        count = self.unpack("<I", start)
        if start + 4 + 4 * count > len(self.data):
            raise FormatError(f"a vector of {count:,} offsets leaves the file.", start, self.path)
        return tuple(read(self.follow(start + 4 + 4 * index)) for index in range(count))

    def spend(self, size: int, start: int) -> None:
        self._left -= size
        if self._left < 0:
            raise FormatError("offsets lead to the same places over and over.", start, self.path)


class Table:
    """One table; a field is named by its voffset (4, 6, 8, ...), as the generated code of schemas has it."""

    def __init__(self, buffer: FlatBuffer, start: int):
        self._buffer = buffer
        self.start = start
        self.vtable = start - buffer.unpack("<i", start)
        self.vtable_size = buffer.unpack("<H", self.vtable)
        self.size = buffer.unpack("<H", self.vtable + 2)
        if self.vtable_size < 4 or self.vtable + self.vtable_size > len(buffer.data):
            raise FormatError(f"a vtable of {self.vtable_size} bytes is none.", self.vtable, buffer.path)
        if self.size < 4 or start + self.size > len(buffer.data):
            raise FormatError(f"a table of {self.size} bytes leaves the file.", start, buffer.path)

    @property
    def fields(self) -> tuple[int, ...]:
        """The voffsets of the fields that are there."""
        return tuple(place for place in range(4, self.vtable_size - 1, 2) if self._place(place))

    def _place(self, voffset: int) -> int:
        if voffset + 2 > self.vtable_size:
            return 0
        return self._buffer.unpack("<H", self.vtable + voffset)

    def place(self, voffset: int) -> int:
        """Where a field lies; 0 if it is absent."""
        place = self._place(voffset)
        if place >= self.size:
            raise FormatError(f"the field {voffset} lies outside its table.", self.vtable + voffset, self._buffer.path)
        return self.start + place if place else 0

    def integer(self, voffset: int, layout: str = "<i") -> int | None:
        place = self.place(voffset)
        return self._buffer.unpack(layout, place) if place else None

    def string(self, voffset: int) -> str | None:
        place = self.place(voffset)
        return self._buffer.string(self._buffer.follow(place)) if place else None

    def table(self, voffset: int) -> "Table | None":
        place = self.place(voffset)
        return Table(self._buffer, self._buffer.follow(place)) if place else None

    def strings(self, voffset: int) -> tuple[str, ...]:
        place = self.place(voffset)
        return self._buffer.vector(self._buffer.follow(place), self._buffer.string) if place else ()

    def tables(self, voffset: int) -> "tuple[Table, ...]":
        place = self.place(voffset)
        if not place:
            return ()
        return self._buffer.vector(self._buffer.follow(place), lambda start: Table(self._buffer, start))
