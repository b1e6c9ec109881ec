"""Where in a protobuf's bytes something lies: the `protobuf` package parses fast and says no place.

    fault(data, Model.DESCRIPTOR)                        the first byte that cannot be read, and why
    locate(data, ((502, None), (2, "main"), (3, 7)))     where the eighth `operations` of that function begins

Source: protobuf.dev, Encoding.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor

#: How deep messages may lie in each other: the limit of the protobuf package.
MAX_DEPTH = 100

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)

#: A field number, and which of its occurrences: its place, its key in a map, or None for the last.
FieldKey = tuple[int, int | str | None]


class Field(NamedTuple):
    """One field as it lies in the bytes: its tag begins at `tag`, its content fills start:end."""

    number: int
    wire: int
    tag: int
    start: int
    end: int


class Unreadable(Exception):
    """The bytes cannot be read from `offset` on."""

    def __init__(self, message: str, offset: int):
        super().__init__(message)
        self.offset = offset


def fault(data: bytes, descriptor: Descriptor) -> tuple[int, str]:
    """The offset of the first thing that is wrong, and what it is; the end of the data if nothing is."""
    try:
        _check(data, 0, len(data), descriptor, 1)
    except Unreadable as error:
        return error.offset, str(error)
    return len(data), "the data ends where more is needed."


def locate(data: bytes, field_path: Sequence[FieldKey]) -> int:
    """Where the content of the field begins that a path leads to; as far as it leads."""
    start, end, found = 0, len(data), 0
    for number, which in field_path:
        try:
            field = _find(data, start, end, number, which)
        except Unreadable:
            return found
        if field is None:
            return found
        start, end = field.start, field.end
        found = start
    return found


def _find(data: bytes, start: int, end: int, number: int, which: int | str | None) -> Field | None:
    """The field of bytes that a part of a path means; of several with one key the last, as maps have it."""
    found, place = None, 0
    for field in walk(data, start, end):
        if field.number != number or field.wire != _BYTES:
            continue
        if place == which:
            return field
        place += 1
        if which is None or (isinstance(which, str) and _key(data, field) == which.encode()):
            found = field
    return found


def walk(data: bytes, start: int, end: int) -> Iterator[Field]:
    """The fields between two offsets, in order. Raises Unreadable."""
    pos = start
    while pos < end:
        tag = pos
        key, pos = _varint(data, pos, end)
        number, wire = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise Unreadable(f"a field has the number {number}.", tag)
        content = pos
        if wire == _VARINT:
            _, pos = _varint(data, pos, end)
        elif wire in (_FIXED64, _FIXED32):
            pos += 8 if wire == _FIXED64 else 4
        elif wire == _BYTES:
            size, content = _varint(data, pos, end)
            pos = content + size
        elif wire not in (_GROUP, _END_GROUP):
            raise Unreadable(f"field {number} has the unknown wire type {wire}.", tag)
        if pos > end:
            raise Unreadable(
                f"field {number} needs {pos - content:,} bytes and {max(0, end - content):,} are left.", tag
            )
        yield Field(number, wire, tag, content, pos)


def _varint(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """The number at `pos`, and where it ends."""
    value = 0
    for place in range(10):
        if pos + place >= end:
            raise Unreadable("the data ends within a number.", pos)
        byte = data[pos + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, pos + place + 1
    raise Unreadable("a number is longer than ten bytes.", pos)


def _key(data: bytes, entry: Field) -> bytes:
    """The key of a map's entry; empty if it has none."""
    key = b""
    for field in walk(data, entry.start, entry.end):
        if field.number == 1 and field.wire == _BYTES:
            key = data[field.start : field.end]
    return key


def _check(data: bytes, start: int, end: int, descriptor: Descriptor, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Unreadable(f"messages lie deeper than {MAX_DEPTH} in each other.", start)
    groups: list[int] = []
    for field in walk(data, start, end):
        if field.wire == _GROUP:
            groups.append(field.number)
            if depth + len(groups) > MAX_DEPTH:
                raise Unreadable(f"groups lie deeper than {MAX_DEPTH} in each other.", field.tag)
        elif field.wire == _END_GROUP and (not groups or groups.pop() != field.number):
            raise Unreadable(f"a group {field.number} ends that did not begin.", field.tag)
        declared = None if groups else descriptor.fields_by_number.get(field.number)
        if declared is not None and field.wire == _BYTES:
            _check_content(data, field, declared, depth)
    if groups:
        raise Unreadable(f"the group {groups[-1]} does not end.", end)


def _check_content(data: bytes, field: Field, declared: FieldDescriptor, depth: int) -> None:
    if declared.message_type is not None:
        _check(data, field.start, field.end, declared.message_type, depth + 1)
    elif declared.type == FieldDescriptor.TYPE_STRING:
        try:
            data[field.start : field.end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise Unreadable(f"{declared.name} is not UTF-8.", field.start + error.start) from None
    elif declared.is_repeated and declared.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        width = 4 if declared.type == FieldDescriptor.TYPE_FLOAT else 8
        if (field.end - field.start) % width:
            raise Unreadable(
                f"{declared.name} fill {field.end - field.start:,} bytes, not a multiple of {width}.", field.start
            )
    elif declared.is_repeated:
        pos = field.start
        while pos < field.end:
            _, pos = _varint(data, pos, field.end)
