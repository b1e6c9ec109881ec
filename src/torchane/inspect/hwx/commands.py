"""The load commands of a `.hwx` file: u32 command, u32 size, then what the command says.

Each is read into fields, and `tail` keeps the bytes behind them, so that writing gives the same bytes. A command
that is unknown, or too short for its fields, is kept whole as `Unknown`.
Sources: docs/formats.md, section .hwx; Mach-O for what Apple's object files have too.
"""

import struct
from dataclasses import dataclass
from typing import ClassVar, Protocol

_HEAD = struct.Struct("<II")

SEGMENT, SYMBOLS, STATE, PORT, BANNER, NOTE, REGION = 0x19, 0x02, 0x04, 0x06, 0x08, 0x31, 0x40

#: Flavors of a state command.
PROCEDURE_STATE, PORT_STATE = 1, 3


class Command(Protocol):
    """Any load command; `offset` is its place in the file."""

    offset: int

    def body(self) -> bytes:
        """The bytes behind command and size."""
        ...

    @property
    def code(self) -> int: ...


def to_bytes(command: Command) -> bytes:
    body = command.body()
    return _HEAD.pack(command.code, _HEAD.size + len(body)) + body


@dataclass(frozen=True)
class Unknown:
    """A command that nobody has described, or that is not formed as described."""

    offset: int
    code: int
    data: bytes

    def body(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class Section:
    """Part of a segment; `file_offset` counts in the file, `flags` and the rest as in Mach-O."""

    name_bytes: bytes
    segment_bytes: bytes
    address: int
    size: int
    file_offset: int
    align: int
    relocation_offset: int
    relocation_count: int
    flags: int
    reserved: tuple[int, int, int]

    _LAYOUT: ClassVar = struct.Struct("<16s16sQQIIIIIIII")

    @classmethod
    def read(cls, data: bytes, start: int) -> "Section":
        *fields, a, b, c = cls._LAYOUT.unpack_from(data, start)
        return cls(*fields, (a, b, c))

    def pack(self) -> bytes:
        return self._LAYOUT.pack(
            self.name_bytes, self.segment_bytes, self.address, self.size, self.file_offset, self.align,
            self.relocation_offset, self.relocation_count, self.flags, *self.reserved,
        )  # fmt: skip

    @property
    def name(self) -> str:
        return text(self.name_bytes)


@dataclass(frozen=True)
class Segment:
    """A range of addresses, where its bytes lie in the file (nowhere if `file_size` is 0), and its sections."""

    offset: int
    name_bytes: bytes
    address: int
    size: int
    file_offset: int
    file_size: int
    max_protection: int
    protection: int
    flags: int
    sections: tuple[Section, ...]
    tail: bytes

    code: ClassVar[int] = SEGMENT
    _LAYOUT: ClassVar = struct.Struct("<16sQQQQIIII")

    @classmethod
    def read(cls, offset: int, body: bytes) -> "Segment | None":
        if len(body) < cls._LAYOUT.size:
            return None
        *fields, count, flags = cls._LAYOUT.unpack_from(body)
        width = Section._LAYOUT.size
        end = cls._LAYOUT.size + count * width
        if end > len(body):
            return None
        sections = tuple(Section.read(body, start) for start in range(cls._LAYOUT.size, end, width))
        return cls(offset, *fields, flags, sections, body[end:])

    def body(self) -> bytes:
        head = self._LAYOUT.pack(
            self.name_bytes, self.address, self.size, self.file_offset, self.file_size, self.max_protection,
            self.protection, len(self.sections), self.flags,
        )  # fmt: skip
        return head + b"".join(section.pack() for section in self.sections) + self.tail

    @property
    def name(self) -> str:
        return text(self.name_bytes)


@dataclass(frozen=True)
class PortAddress:
    """Where a port's memory is mapped. Newer files are said to write a u64; the name's offset tells the name."""

    offset: int
    name_offset: int
    unknown: int
    address: int
    tail: bytes

    code: ClassVar[int] = PORT
    _LAYOUT: ClassVar = struct.Struct("<III")

    @classmethod
    def read(cls, offset: int, body: bytes) -> "PortAddress | None":
        if len(body) < cls._LAYOUT.size:
            return None
        return cls(offset, *cls._LAYOUT.unpack_from(body), body[cls._LAYOUT.size :])

    def body(self) -> bytes:
        return self._LAYOUT.pack(self.name_offset, self.unknown, self.address) + self.tail

    @property
    def name(self) -> str:
        return string_at(to_bytes(self), self.name_offset)


@dataclass(frozen=True)
class State:
    """A state command: `flavor`, then `words`, then texts. Flavor 1 describes the procedure, flavor 3 a port."""

    offset: int
    flavor: int
    words: tuple[int, ...]
    tail: bytes

    code: ClassVar[int] = STATE
    _LAYOUT: ClassVar = struct.Struct("<II")

    @classmethod
    def read(cls, offset: int, body: bytes) -> "State | None":
        if len(body) < cls._LAYOUT.size:
            return None
        flavor, count = cls._LAYOUT.unpack_from(body)
        end = cls._LAYOUT.size + 4 * count
        if end > len(body):
            return None
        return cls(offset, flavor, struct.unpack_from(f"<{count}I", body, cls._LAYOUT.size), body[end:])

    def body(self) -> bytes:
        count = len(self.words)
        return self._LAYOUT.pack(self.flavor, count) + struct.pack(f"<{count}I", *self.words) + self.tail

    def word(self, index: int) -> int:
        """A word; 0 past the end."""
        return self.words[index] if index < len(self.words) else 0

    def long(self, index: int) -> int:
        """Two words as one number."""
        return self.word(index) | self.word(index + 1) << 32

    def text_at(self, index: int) -> str:
        """The text whose offset from the command's start a word holds."""
        return string_at(to_bytes(self), self.word(index))


@dataclass(frozen=True)
class Banner:
    """The compiler's name, version and options, as text."""

    offset: int
    data: bytes

    code: ClassVar[int] = BANNER

    def body(self) -> bytes:
        return self.data

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(line.strip() for line in text(self.data).splitlines() if line.strip())


@dataclass(frozen=True)
class SymbolTable:
    """Where symbols and their texts lie in the file."""

    offset: int
    symbols_offset: int
    count: int
    strings_offset: int
    strings_size: int
    tail: bytes

    code: ClassVar[int] = SYMBOLS
    _LAYOUT: ClassVar = struct.Struct("<IIII")

    @classmethod
    def read(cls, offset: int, body: bytes) -> "SymbolTable | None":
        if len(body) < cls._LAYOUT.size:
            return None
        return cls(offset, *cls._LAYOUT.unpack_from(body), body[cls._LAYOUT.size :])

    def body(self) -> bytes:
        fields = (self.symbols_offset, self.count, self.strings_offset, self.strings_size)
        return self._LAYOUT.pack(*fields) + self.tail


@dataclass(frozen=True)
class Note:
    """A part of the file that somebody else owns."""

    offset: int
    owner_bytes: bytes
    data_offset: int
    data_size: int
    tail: bytes

    code: ClassVar[int] = NOTE
    _LAYOUT: ClassVar = struct.Struct("<16sQQ")

    @classmethod
    def read(cls, offset: int, body: bytes) -> "Note | None":
        if len(body) < cls._LAYOUT.size:
            return None
        return cls(offset, *cls._LAYOUT.unpack_from(body), body[cls._LAYOUT.size :])

    def body(self) -> bytes:
        return self._LAYOUT.pack(self.owner_bytes, self.data_offset, self.data_size) + self.tail

    @property
    def owner(self) -> str:
        return text(self.owner_bytes)


@dataclass(frozen=True)
class MappedRegion:
    """A region by its number and name; the words between are unknown."""

    offset: int
    data: bytes

    code: ClassVar[int] = REGION
    _NAME: ClassVar[int] = 24

    def body(self) -> bytes:
        return self.data

    @property
    def region(self) -> int:
        """Word 4 of the command."""
        return int.from_bytes(self.data[8:12], "little")

    @property
    def name(self) -> str:
        return string_at(to_bytes(self), self._NAME)


_READERS = {SEGMENT: Segment.read, SYMBOLS: SymbolTable.read, STATE: State.read, PORT: PortAddress.read,
            BANNER: Banner, NOTE: Note.read, REGION: MappedRegion}  # fmt: skip


def read(offset: int, code: int, body: bytes) -> Command:
    """The command of that code."""
    reader = _READERS.get(code)
    command = reader(offset, body) if reader is not None else None
    return command or Unknown(offset, code, body)


def text(data: bytes) -> str:
    """Bytes up to the first zero; what is no ASCII is shown as its number."""
    return data.partition(b"\0")[0].decode("ascii", "backslashreplace")


def string_at(data: bytes, start: int) -> str:
    """The text that begins at `start`; empty past the end."""
    return text(data[start:])
