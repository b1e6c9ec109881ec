"""The `.hwx` container: a header of 32 bytes, load commands, and what they point to.

    | header | commands ... | gap | __text: task descriptors | __const: weights | ... | symbols | texts |

Little-endian throughout, laid out like Mach-O with a magic number of its own. Reading checks every place that a
command names before it goes there; what nothing names is kept as it is.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from torchane.inspect.errors import FormatError
from torchane.inspect.hwx import commands as cmd
from torchane.inspect.hwx.symbols import Symbol, read_symbols
from torchane.inspect.hwx.targets import TARGETS, Target
from torchane.inspect.hwx.tasks import TaskStream, read_tasks

MAGIC = 0xBEEFFACE
#: Seen in one parser beside the usual one.
OTHER_MAGIC = 0xFEEDFACF

_HEADER = struct.Struct("<8I")
_COMMAND = struct.Struct("<II")

TEXT_SECTION = "__text"
_C = TypeVar("_C")


@dataclass(frozen=True)
class Header:
    """The file's first words. `subtype` tells the generation, `kind` is 2 in every known file."""

    magic: int
    cpu_type: int
    subtype: int
    kind: int
    command_count: int
    commands_size: int
    flags: int
    reserved: int

    @property
    def target(self) -> Target | None:
        return TARGETS.get(self.subtype)


@dataclass(frozen=True)
class Hwx:
    """One file. `trailer` is what follows the commands, from byte 32 + `header.commands_size` on; `padding` what is
    left of the commands' space."""

    path: str
    header: Header
    commands: tuple[cmd.Command, ...]
    padding: bytes
    trailer: bytes

    @property
    def trailer_offset(self) -> int:
        return _HEADER.size + self.header.commands_size

    def of(self, kind: type[_C]) -> tuple[_C, ...]:
        """The commands of a class, in order."""
        return tuple(command for command in self.commands if isinstance(command, kind))

    @property
    def sections(self) -> Iterator[tuple[cmd.Segment, cmd.Section]]:
        for segment in self.of(cmd.Segment):
            for section in segment.sections:
                yield segment, section

    def content(self, segment: cmd.Segment, section: cmd.Section) -> bytes:
        """The bytes of a section; none where the segment has none in the file. Raises FormatError."""
        start, size = self._place(segment, section)
        return self.trailer[start : start + size]

    def _place(self, segment: cmd.Segment, section: cmd.Section) -> tuple[int, int]:
        """Start within the trailer, and size, of a section's bytes."""
        if not segment.file_size:
            return 0, 0
        what = f"the section {section.name} of {segment.name}"
        return self._inside(section.file_offset, section.size, what, segment.offset), section.size

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """Every symbol, in order."""
        table = self.symbol_table
        if table is None:
            return ()
        entries = self._bytes(table.symbols_offset, table.count * Symbol.SIZE, "the symbol table", table.offset)
        strings = self._bytes(table.strings_offset, table.strings_size, "the symbols' texts", table.offset)
        return tuple(read_symbols(entries, strings, table.symbols_offset, self.path))

    @property
    def symbol_table(self) -> cmd.SymbolTable | None:
        """The one symbol table. Raises FormatError where there are more."""
        tables = self.of(cmd.SymbolTable)
        if len(tables) > 1:
            raise FormatError("there is a second symbol table.", tables[1].offset, self.path)
        return tables[0] if tables else None

    @cached_property
    def tasks(self) -> tuple[TaskStream, ...]:
        """The task descriptors, one stream for each `__text` section. Raises FormatError where two overlap."""
        version = self.header.target.version if self.header.target else None
        streams: list[TaskStream] = []
        texts = [(segment, section) for segment, section in self.sections if section.name == TEXT_SECTION]
        for segment, section in sorted(texts, key=lambda pair: pair[1].file_offset):
            if streams and section.file_offset < streams[-1].offset + streams[-1].size:
                raise FormatError(f"two {TEXT_SECTION} sections overlap.", segment.offset, self.path)
            streams.append(read_tasks(self.content(segment, section), section.file_offset, version))
        return tuple(streams)

    @cached_property
    def relocations(self) -> tuple[tuple[int, int], ...]:
        """Address and second word of every relocation, in order of the sections."""
        found: list[tuple[int, int]] = []
        for segment, section in self.sections:
            if section.relocation_count:
                what = f"the relocations of {section.name}"
                data = self._bytes(section.relocation_offset, 8 * section.relocation_count, what, segment.offset)
                found.extend(struct.iter_unpack("<II", data))
                if 8 * len(found) > len(self.trailer):
                    raise FormatError("sections share their relocations over and over.", segment.offset, self.path)
        return tuple(found)

    def _bytes(self, start: int, size: int, what: str, offset: int) -> bytes:
        begin = self._inside(start, size, what, offset)
        return self.trailer[begin : begin + size]

    def _inside(self, start: int, size: int, what: str, offset: int) -> int:
        """Where in the trailer `size` bytes from byte `start` of the file on begin. Raises FormatError, at the command
        that names them, where they are not all there."""
        begin = start - self.trailer_offset
        if size and (begin < 0 or begin + size > len(self.trailer)):
            raise FormatError(
                f"{what} would fill {size:,} bytes from byte {start:,} on; "
                f"the file has {self.trailer_offset:,} to {self.trailer_offset + len(self.trailer):,} for it.",
                offset,
                self.path,
            )
        return max(begin, 0)


def parse(data: bytes, path: str = "<hwx>") -> Hwx:
    """Reads a file whole; `to_bytes` gives the same bytes back. Raises FormatError, which names the byte."""
    if len(data) < _HEADER.size:
        raise FormatError(f"the file ends within its header of {_HEADER.size} bytes.", len(data), path)
    header = Header(*_HEADER.unpack_from(data))
    if header.magic not in (MAGIC, OTHER_MAGIC):
        raise FormatError(f"this is no .hwx file: it begins with {header.magic:#010x}, not {MAGIC:#010x}.", 0, path)
    end = _HEADER.size + header.commands_size
    if end > len(data):
        raise FormatError(
            f"the commands would end at byte {end:,} and the file ends at {len(data):,}.", 20, path
        )  # fmt: skip
    found, pos = _commands(data, header, end, path)
    hwx = Hwx(path, header, found, data[pos:end], data[end:])
    for segment, section in hwx.sections:
        hwx._place(segment, section)
    _ = hwx.symbols, hwx.tasks, hwx.relocations  # what cannot be read is refused now, not when it is looked at
    return hwx


def _commands(data: bytes, header: Header, end: int, path: str) -> tuple[tuple[cmd.Command, ...], int]:
    """The commands, and where the last one ends."""
    found: list[cmd.Command] = []
    pos = _HEADER.size
    for index in range(header.command_count):
        where = f"load command {index} of {header.command_count:,}"
        if pos + _COMMAND.size > end:
            raise FormatError(f"{where}: the commands end at byte {end:,}.", pos, path)
        code, size = _COMMAND.unpack_from(data, pos)
        if size < _COMMAND.size or pos + size > end:
            raise FormatError(f"{where} has {size:,} bytes; it needs 8 and may have {end - pos:,}.", pos + 4, path)
        found.append(cmd.read(pos, code, data[pos + _COMMAND.size : pos + size]))
        pos += size
    return tuple(found), pos


def to_bytes(hwx: Hwx) -> bytes:
    """The file's bytes, put together from what was read: header, commands, symbols and task words each from their
    fields, the rest as it was."""
    trailer = bytearray(hwx.trailer)
    start = hwx.trailer_offset
    for stream in hwx.tasks:
        data = stream.to_bytes()
        trailer[stream.offset - start : stream.offset - start + len(data)] = data
    if hwx.symbols:
        entries = b"".join(symbol.pack() for symbol in hwx.symbols)
        trailer[hwx.symbols[0].table - start : hwx.symbols[0].table - start + len(entries)] = entries
    header = _HEADER.pack(
        hwx.header.magic, hwx.header.cpu_type, hwx.header.subtype, hwx.header.kind, hwx.header.command_count,
        hwx.header.commands_size, hwx.header.flags, hwx.header.reserved,
    )  # fmt: skip
    return header + b"".join(map(cmd.to_bytes, hwx.commands)) + hwx.padding + bytes(trailer)
