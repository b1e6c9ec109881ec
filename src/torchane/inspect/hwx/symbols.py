"""Symbols of a `.hwx` file: weight tiles and ports by address, and STABS-like texts of types and shapes.

K<64 hex digits>_ne_<lane>                     a tile of weights, named by the SHA-256 of its bytes
float16:t5=r1;2;0                              an element type of the catalogue
image:t11=ar1;0;1;12=s192n:ar1;0;3;13=s64c:...:5
                                               a port: per axis its size and stride in bytes, then the type
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torchane.inspect.errors import FormatError
from torchane.inspect.hwx.commands import text

DEFINED, SHAPE, TYPE = 0x0F, 0x20, 0x80

_AXIS = re.compile(r"ar1;0;(\d{1,20});\d{1,9}=s(\d{1,20})([a-z])")
_PORT = re.compile(r"([^:]*):t\d+=((?:ar1;0;\d{1,20};\d{1,9}=s\d{1,20}[a-z]:?)+)(\d{1,9})?")
_TILE = re.compile(r"K([0-9A-Fa-f]{64})_ne_(\d{1,9})")


@dataclass(frozen=True)
class Symbol:
    """One entry; `table` is the offset of the table that holds it, `name` its text."""

    table: int
    string: int
    type: int
    section: int
    description: int
    value: int
    name: str

    SIZE: ClassVar[int] = 16
    _LAYOUT: ClassVar = struct.Struct("<IBBHQ")

    def pack(self) -> bytes:
        return self._LAYOUT.pack(self.string, self.type, self.section, self.description, self.value)

    @property
    def tile(self) -> tuple[str, int] | None:
        """Hash and lane, if this names a tile of weights."""
        match = _TILE.fullmatch(self.name) if self.type == DEFINED else None
        return (match.group(1), int(match.group(2))) if match else None

    @property
    def port(self) -> "PortShape | None":
        """The port that the text describes, if it does."""
        match = _PORT.fullmatch(self.name) if self.type == SHAPE else None
        if match is None:
            return None
        axes = _AXIS.findall(match.group(2))
        return PortShape(
            match.group(1),
            {axis: int(size) for size, _, axis in axes},
            {axis: int(stride) for _, stride, axis in axes},
            int(match.group(3) or 0),
        )


@dataclass(frozen=True)
class PortShape:
    """Sizes and strides in bytes by axis letter, and the element type's number in the catalogue."""

    name: str
    sizes: dict[str, int]
    strides: dict[str, int]
    element: int


def read_symbols(entries: bytes, strings: bytes, table: int, path: str) -> Iterator[Symbol]:
    """Raises FormatError for a text that begins outside the texts, and where texts overlap so much that showing them
    would take far more room than the file has."""
    budget = 4 * len(strings) + 1024
    for index, fields in enumerate(struct.iter_unpack(Symbol._LAYOUT.format, entries)):
        start = fields[0]
        where = table + index * Symbol.SIZE
        if start > len(strings):
            raise FormatError(f"symbol {index} has its text at {start:,} of {len(strings):,} bytes.", where, path)
        end = strings.find(b"\0", start)
        name = strings[start : len(strings) if end < 0 else end]
        budget -= len(name)
        if budget < 0:
            raise FormatError(f"symbol {index} and those before it share texts over and over.", where, path)
        yield Symbol(table, *fields, text(name))
