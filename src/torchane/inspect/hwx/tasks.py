"""Task descriptors: what the engine is told to do, as header words and writes to its registers.

H13 and before (version 7 or less), a linked list     | 10 header words | packets | 0 ... | next descriptor | ...
    packet: count - 1 in bits 26-31, byte address in bits 0-25, then the values; a zero word is padding
H14 and later, a stream                               | 16 bytes | descriptor, aligned to 16 | ... |
    dense packet: count - 1 in bits 15-20, word address in bits 0-14, then the values
    sparse packet (bit 31): mask in bits 15-30; the first value is for the address, then one for each set bit i,
    for the address + 1 + i
The header of a stream's descriptor has 8 to 12 words, sources disagree: the first length is taken whose packets end
where the descriptor does. What cannot be read so is kept as words without a meaning.
Sources: FTN, M6S (tags in docs/formats.md); version 7 verified on the shared files.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

#: The last version whose descriptors form a linked list, and the header words there.
LAST_LINKED = 7
_LINKED_HEADER = 10
_NEXT = 7

#: Lengths of a stream's header that sources name, most likely first.
_STREAM_HEADERS = {11: (8,), 8: (8,)}
_LATER_STREAM_HEADERS = (9, 10, 12, 8)
_FEWEST_WORDS = 8
STREAM_START = 16
_ALIGNMENT = 16

#: The first version with packets that hold addresses (bit 29), M6S.
_FIRST_WITH_SLOTS = 24


@dataclass(frozen=True)
class Packet:
    """Writes to registers: `addresses` in bytes, one for each of `values`. `slot` is the address slot of a packet
    that holds addresses."""

    header: int
    addresses: tuple[int, ...]
    values: tuple[int, ...]
    slot: int | None = None

    @property
    def words(self) -> tuple[int, ...]:
        return (self.header, *self.values)


@dataclass(frozen=True)
class Words:
    """Words that belong to no packet: padding, or of unknown meaning."""

    words: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """One descriptor; `offset` is its place in the file."""

    offset: int
    header: tuple[int, ...]
    parts: tuple[Packet | Words, ...]

    @property
    def packets(self) -> tuple[Packet, ...]:
        return tuple(part for part in self.parts if isinstance(part, Packet))

    def words(self) -> Iterator[int]:
        yield from self.header
        for part in self.parts:
            yield from part.words


@dataclass(frozen=True)
class Gap:
    """Bytes between descriptors."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class TaskStream:
    """The content of one section. `version` is that of its descriptors, None where the generation is unknown: then
    all is one gap."""

    offset: int
    version: int | None
    parts: tuple[Task | Gap, ...]

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(part for part in self.parts if isinstance(part, Task))

    @property
    def size(self) -> int:
        return len(self.to_bytes())

    def to_bytes(self) -> bytes:
        pieces = []
        for part in self.parts:
            if isinstance(part, Gap):
                pieces.append(part.data)
            else:
                words = tuple(part.words())
                pieces.append(struct.pack(f"<{len(words)}I", *words))
        return b"".join(pieces)


def read_tasks(data: bytes, offset: int, version: int | None) -> TaskStream:
    """The descriptors in the bytes of a section that lies at `offset` of the file."""
    if version is None:
        return TaskStream(offset, None, (Gap(offset, data),) if data else ())
    read = _linked if version <= LAST_LINKED else _stream
    return TaskStream(offset, version, tuple(read(data, offset, version)))


def _linked(data: bytes, offset: int, version: int) -> Iterator[Task | Gap]:
    begin, whole = 0, len(data) & ~3
    while whole - begin >= 4 * _LINKED_HEADER:
        header = struct.unpack_from(f"<{_LINKED_HEADER}I", data, begin)
        following = header[_NEXT]
        # a link that does not lead on ends the list
        is_last = following % 4 or not begin + 4 * _LINKED_HEADER <= following < whole
        end = whole if is_last else following
        start = begin + 4 * _LINKED_HEADER
        words = struct.unpack_from(f"<{(end - start) // 4}I", data, start)
        yield Task(offset + begin, header, tuple(_linked_parts(words)))
        begin = end
        if is_last:
            break
    if begin < len(data):
        yield Gap(offset + begin, data[begin:])


def _linked_parts(words: tuple[int, ...]) -> Iterator[Packet | Words]:
    place = 0
    while place < len(words):
        start = place
        while place < len(words) and not words[place]:
            place += 1
        if place > start:
            yield Words(words[start:place])
            continue
        count = (words[place] >> 26) + 1
        if place + 1 + count > len(words):
            yield Words(words[place:])
            return
        address = words[place] & 0x3FFFFFF
        addresses = tuple(range(address, address + 4 * count, 4))
        yield Packet(words[place], addresses, words[place + 1 : place + 1 + count])
        place += 1 + count


def _stream(data: bytes, offset: int, version: int) -> Iterator[Task | Gap]:
    gap, place = 0, min(STREAM_START, len(data))
    while len(data) - place >= 4 * _FEWEST_WORDS:
        size = struct.unpack_from("<I", data, place)[0] >> 16 & 0x7FF
        end = place + 4 * size
        if size == 0:
            place += _ALIGNMENT
            continue
        if size < _FEWEST_WORDS or end > len(data):
            break
        if gap < place:
            yield Gap(offset + gap, data[gap:place])
        yield _stream_task(struct.unpack_from(f"<{size}I", data, place), offset + place, version)
        gap = end
        place = -(-end // _ALIGNMENT) * _ALIGNMENT
    if gap < len(data):
        yield Gap(offset + gap, data[gap:])


def _stream_task(words: tuple[int, ...], offset: int, version: int) -> Task:
    lengths = _STREAM_HEADERS.get(version, _LATER_STREAM_HEADERS)
    for length in lengths:
        packets = _stream_packets(words[length:], version) if length <= len(words) else None
        if packets is not None:
            return Task(offset, words[:length], packets)
    return Task(offset, words[: lengths[0]], (Words(words[lengths[0] :]),))


def _stream_packets(words: tuple[int, ...], version: int) -> tuple[Packet, ...] | None:
    """The packets if they fill the words, else None."""
    packets = []
    place = 0
    while place < len(words):
        header = words[place]
        address, slot = 4 * (header & 0x7FFF), None
        if header >> 31:
            mask = header >> 15 & 0xFFFF
            addresses = (address, *(address + 4 * (bit + 1) for bit in range(16) if mask >> bit & 1))
        else:
            count = (header >> 15 & 0x3F) + 1
            addresses = tuple(range(address, address + 4 * count, 4))
            if version >= _FIRST_WITH_SLOTS and header >> 29 & 1:
                slot = header >> 21 & 0xFF
        end = place + 1 + len(addresses)
        if end > len(words):
            return None
        packets.append(Packet(header, addresses, words[place + 1 : end], slot))
        place = end
    return tuple(packets)
