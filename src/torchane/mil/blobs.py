"""Weight blobs: the file that holds a MIL program's constants.

    | header 64 B | record 0, 64 B | data 0 | pad to 64 | record 1, 64 B | data 1 | ...

A program names a constant by the offset of its record, not of its data. Everything is little-endian.
Elements below eight bits are packed without gaps, the first one in the lowest bits.
Reading maps the file into memory and copies nothing, except sub-byte elements, which NumPy cannot hold packed, and
data of emitters that leave out the padding, where it does not lie as its type asks.
Source: coremltools, MILBlob/Blob/StorageFormat.hpp and Util/SubByteConversions.hpp.
"""

import heapq
import mmap
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from torchane.errors import ParseError, UsageError
from torchane.mil.files import LONGEST_STAND_IN, require_fetched
from torchane.mil.types import DType

_HEADER = struct.Struct("<II56x")
_RECORD = struct.Struct("<IIQQQ32x")
_VERSION = 2
_SENTINEL = 0xDEADBEEF
RECORD_BEGINS = _SENTINEL.to_bytes(4, "little")
_BEGINNING = re.compile(re.escape(RECORD_BEGINS))
_ALIGNMENT = 64

#: Of a file with more faults than this the rest is not looked at.
_MOST_FAULTS = 20
#: Bytes that are looked through at once for one that is not zero.
_CHUNK = 1 << 20

#: The container's code of each element type; bool, string and 64-bit numbers have none.
CODES: dict[DType, int] = {
    DType.FP16: 1, DType.FP32: 2, DType.UINT8: 3, DType.INT8: 4, DType.BF16: 5, DType.INT16: 6, DType.UINT16: 7,
    DType.INT4: 8, DType.UINT1: 9, DType.UINT2: 10, DType.UINT4: 11, DType.UINT3: 12, DType.UINT6: 13,
    DType.INT32: 14, DType.UINT32: 15, DType.FP8E4M3FN: 16, DType.FP8E5M2: 17,
}  # fmt: skip
_DTYPES = {code: dtype for dtype, code in CODES.items()}


class BlobError(ParseError):
    """A weight file that is not what it should be; `offset` is the byte where it went wrong."""

    def __init__(self, path: str, offset: int, message: str):
        super().__init__(f"{path}: byte {offset:,}: {message}")
        self.path = path
        self.offset = offset


class BlobPathError(ParseError):
    """A program names a weight file outside its own folder."""


@dataclass(frozen=True)
class Record:
    """Where one constant lies: `offset` is its record's place (the one that programs name), `start` its data's."""

    offset: int
    dtype: DType
    start: int
    size_bytes: int
    padding_bits: int

    @property
    def size(self) -> int:
        """How many elements."""
        return (self.size_bytes * 8 - self.padding_bits) // self.dtype.bits


@dataclass(frozen=True)
class Survey:
    """All that a weight file holds: its records in order, how many its header counts (readers go by offsets, so that
    nothing depends on it), and what is not as it should be: each fault with its byte, what lies behind it is read."""

    records: tuple[Record, ...]
    counted: int
    faults: tuple[BlobError, ...]


class BlobWriter:
    """Collects constants; equal ones are stored once, unless `shares_equal` is off: then `places` knows where each will lie."""

    def __init__(self, shares_equal: bool = True) -> None:
        self._shares_equal = shares_equal
        self._records: list[tuple[DType, int, bytes]] = []
        self._known: dict[tuple[DType, int, bytes], int] = {}
        self._end = _HEADER.size

    def __len__(self) -> int:
        return len(self._records)

    def add(self, array: np.ndarray, dtype: DType) -> int:
        """Stores the elements row-major and returns the offset by which a program names them.

        array: of `dtype.numpy`, sub-byte elements one per item. Raises UsageError for a dtype without a
        code and for values that do not fit the dtype.
        """
        if dtype not in CODES:
            raise UsageError(f"a weight file cannot hold {dtype.mil_name}. It holds {', '.join(map(repr, CODES))}.")
        if array.dtype != dtype.numpy:
            raise UsageError(f"a {dtype.mil_name} constant is a NumPy array of {dtype.numpy}, not of {array.dtype}.")
        data = pack(array, dtype)
        key = (dtype, array.size, data)
        if key not in self._known or not self._shares_equal:
            self._known[key] = self._end
            self._records.append(key)
            self._end = _aligned(self._end + _RECORD.size + len(data))
        return self._known[key]

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes, piece by piece."""
        yield _HEADER.pack(len(self._records), _VERSION)
        end = _HEADER.size
        for dtype, size, data in self._records:
            yield bytes(_aligned(end) - end)
            start = _aligned(end) + _RECORD.size
            yield _RECORD.pack(_SENTINEL, CODES[dtype], len(data), start, len(data) * 8 - size * dtype.bits)
            yield data
            end = start + len(data)

    def to_bytes(self) -> bytes:
        return b"".join(self.chunks())


def places(parts: Iterable[tuple[DType, int]]) -> list[int]:
    """The offsets of records of so many elements each, one behind the other, before their numbers are known."""
    found, end = [], _HEADER.size
    for dtype, size in parts:
        found.append(end)
        end = _aligned(end + _RECORD.size + (size * dtype.bits + 7) // 8)
    return found


class BlobFile:
    """A weight file, open for reading. Its arrays are read-only views of the mapped file and keep it open."""

    def __init__(self, buffer: memoryview, path: str):
        self._buffer = buffer
        self.path = path
        require_fetched(path, bytes(buffer[:LONGEST_STAND_IN]))
        if len(buffer) < _HEADER.size:
            raise BlobError(path, len(buffer), f"the file ends within its header of {_HEADER.size} bytes.")
        self._count, version = _HEADER.unpack_from(buffer)
        if version != _VERSION:
            raise BlobError(path, 4, f"this is not a weight file of version {_VERSION} (it says {version}).")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "BlobFile":
        """Maps the file. Raises ParseError if it is missing or no weight file."""
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would make us wait for ever
            raise ParseError(f"{path}: the weight file is no regular file.")
        try:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size == 0:
                    raise BlobError(str(path), 0, "the weight file is empty.")
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ParseError(f"{path}: the weight file cannot be read: {error.strerror or error}.") from error
        return cls(memoryview(mapped), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, path: str = "<weights>") -> "BlobFile":
        return cls(memoryview(data), path)

    def __len__(self) -> int:
        """How many records the header announces."""
        return self._count

    def record(self, offset: int) -> Record:
        """What the record at `offset` says. Raises BlobError where there is none or its data leaves the file."""
        if offset < _HEADER.size or offset + _RECORD.size > len(self._buffer):
            raise BlobError(self.path, offset, f"no record can be here: the file has {len(self._buffer):,} bytes.")
        sentinel, code, size_bytes, start, padding_bits = _RECORD.unpack_from(self._buffer, offset)
        if sentinel != _SENTINEL:
            raise BlobError(
                self.path, offset, f"no record begins here (found {sentinel:#010x}, not {_SENTINEL:#010x})."
            )
        if code not in _DTYPES:
            raise BlobError(
                self.path, offset + 4, f"the element type has the code {code}; known are 1 to {len(_DTYPES)}."
            )
        if start < _HEADER.size or start + size_bytes > len(self._buffer):
            raise BlobError(
                self.path, offset + 8,
                f"the data, {size_bytes:,} bytes from byte {start:,} on, leaves the file of {len(self._buffer):,} bytes.",
            )  # fmt: skip
        if _DTYPES[code].bits >= 8:
            padding_bits = 0  # early writers left the field as it was in memory; whole bytes have no padding
        left_over = (size_bytes * 8 - padding_bits) % _DTYPES[code].bits
        # Emitters exist that leave the field 0: what is left over below a whole element is padding too.
        if padding_bits > min(size_bytes * 8, 7) or (left_over and (padding_bits or _DTYPES[code].bits >= 8)):
            raise BlobError(
                self.path, offset + 24,
                f"{size_bytes:,} bytes less {padding_bits} bits are no whole number of {_DTYPES[code].mil_name}.",
            )  # fmt: skip
        return Record(offset, _DTYPES[code], start, size_bytes, padding_bits)

    def records(self) -> tuple[Record, ...]:
        """Every record that the file holds, in order, be they more than its header counts. Raises BlobError for the
        first fault of its layout; `survey` goes on behind it."""
        survey = self.survey()
        if survey.faults:
            raise survey.faults[0]
        return survey.records

    def survey(self) -> "Survey":
        """All that the file holds: what it shows of records, and what is not as it should be."""
        return _Walk(self, self._buffer).survey()

    def read(self, offset: int) -> tuple[DType, np.ndarray]:
        """The element type and the elements of the record at `offset`, one axis, read-only."""
        record = self.record(offset)
        return record.dtype, self._elements(record, record.dtype)

    def read_as(self, offset: int, dtype: DType) -> np.ndarray:
        """The elements as the program declares them, whatever the record's code says: the compilers in the
        field look at the bytes only, and kernels exist that write the code of fp16 for int8 data (mil-text.md, 7)."""
        record = self.record(offset)
        spare = record.padding_bits if record.dtype.bits < 8 else 0
        if (record.size_bytes * 8 - spare) % dtype.bits and dtype.bits >= 8:
            raise BlobError(
                self.path, offset + 8, f"{record.size_bytes:,} bytes are no whole number of {dtype.mil_name}."
            )  # fmt: skip
        return self._elements(record, dtype)

    def _elements(self, record: Record, dtype: DType) -> np.ndarray:
        data = np.frombuffer(self._buffer, np.uint8, record.size_bytes, record.start)
        if dtype.bits >= 8:
            elements = data.view(dtype.numpy.newbyteorder("<")) if dtype is not DType.BOOL else data != 0
            if not elements.flags.aligned:
                elements = elements.copy()
            elements.setflags(write=False)
            return elements
        elements = unpack(data, (record.size_bytes * 8 - record.padding_bits) // dtype.bits, dtype)
        elements.setflags(write=False)
        return elements


class _Walk:
    """Goes through a file from its header to its end. What lies between a record and the next is its data, padding of
    any length (none, with some emitters), or unknown. Data may also lie apart from its record."""

    def __init__(self, file: BlobFile, buffer: memoryview):
        self._file, self._buffer = file, buffer
        self._bytes = np.frombuffer(buffer, np.uint8)
        self._ahead: list[tuple[int, int]] = []  # data that was announced and not passed yet
        self._faults: list[BlobError] = []

    def survey(self) -> Survey:
        found: list[Record] = []
        place: int | None = self._past_data(_HEADER.size)
        while place is not None and len(self._faults) < _MOST_FAULTS:
            try:
                record = self._file.record(place)
            except BlobError as error:
                place = self._resumed(place, error)
                continue
            found.append(record)
            end = place + _RECORD.size
            if record.start < end:
                self._fault(place + 16, f"the data at byte {record.start:,} lies before its record's end.")
                end = min(end + record.size_bytes, len(self._bytes))  # where it would lie, and most likely does
            else:
                heapq.heappush(self._ahead, (record.start, record.start + record.size_bytes))
            place = self._past_data(end)
        if place is not None:
            self._fault(place, f"after {_MOST_FAULTS} faults the rest of the file is not looked at.")
        counted = len(self._file)
        if counted > len(found):
            self._fault(0, f"the header counts {counted:,} records and the file holds {len(found):,}.")
        return Survey(tuple(found), counted, tuple(self._faults))

    def _fault(self, offset: int, message: str) -> None:
        self._faults.append(BlobError(self._file.path, offset, message))

    def _past_data(self, place: int) -> int | None:
        """The first byte from `place` on that is neither data nor zero; None if there is none."""
        while True:
            while self._ahead and self._ahead[0][0] <= place:
                place = max(place, heapq.heappop(self._ahead)[1])
            limit = self._ahead[0][0] if self._ahead else len(self._bytes)
            for begin in range(place, limit, _CHUNK):
                piece = self._bytes[begin : min(limit, begin + _CHUNK)]
                if piece.any():
                    return begin + int((piece != 0).argmax())
            if not self._ahead:
                return None
            place = limit

    def _resumed(self, place: int, error: BlobError) -> int | None:
        """Where the next record begins after something else at `place`; None if there is none. Says what is skipped,
        but for padding that was left as it was in memory."""
        begins_here = _BEGINNING.match(self._buffer, place) is not None
        following = self._next_record(place + begins_here)
        if begins_here:
            self._faults.append(error)
        elif following is None:
            self._fault(place, f"the last {len(self._bytes) - place:,} bytes belong to no record.")
        elif following != _aligned(place):
            self._fault(place, f"{following - place:,} bytes belong to no record.")
        return following

    def _next_record(self, place: int) -> int | None:
        """The first place from `place` on where a record can be read."""
        for found in _BEGINNING.finditer(self._buffer, place):
            try:
                self._file.record(found.start())
            except BlobError:
                continue
            return found.start()
        return None


def pack(array: np.ndarray, dtype: DType) -> bytes:
    """The bytes in which elements are stored: little-endian, sub-byte elements packed from the lowest bit up.
    Raises UsageError where a value does not fit its bits."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if dtype.bits >= 8:
        return flat.astype(flat.dtype.newbyteorder("<"), copy=False).tobytes()
    low, high = (
        (-(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1) if dtype is DType.INT4 else (0, (1 << dtype.bits) - 1)
    )
    if flat.size and not low <= flat.min() <= flat.max() <= high:
        raise UsageError(f"{dtype.mil_name} holds {low} to {high}; the values go from {flat.min()} to {flat.max()}.")
    bits = np.unpackbits(flat.view(np.uint8)[:, None], axis=1, bitorder="little", count=dtype.bits)
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def unpack(data: np.ndarray, size: int, dtype: DType) -> np.ndarray:
    """`size` sub-byte elements from bytes (uint8), one per item of the result, in `dtype.numpy`."""
    bits = np.unpackbits(data, bitorder="little", count=size * dtype.bits).reshape(size, dtype.bits)
    elements = np.packbits(bits, axis=1, bitorder="little").reshape(size)
    if dtype is DType.INT4:
        return ((elements ^ 8).astype(np.int8) - 8).astype(np.int8)
    return elements


def resolve(folder: str | os.PathLike[str], path: str, said: str = "the program names the weight file") -> Path:
    """The file that a program in `folder` names: `@model_path/weights/weight.bin`, or relative to the folder.
    `said` begins the message of an error.

    Raises BlobPathError for a path that leaves the folder: absolute, through `..`, or through a link.
    """
    folder = Path(folder)
    relative = path.removeprefix("@model_path").lstrip("/") if path.startswith("@model_path/") else path
    why = None
    if not relative or "\0" in relative:
        why = "it names no file"
    elif Path(relative).is_absolute() or relative.startswith(("\\", "~")) or relative[1:2] == ":":
        why = "it is absolute"
    elif ".." in relative.replace("\\", "/").split("/"):
        why = "it goes up through '..'"
    elif not _stays_within(folder, relative):
        why = "it leads out, or nowhere, through a link"
    if why is not None:
        raise BlobPathError(
            f"{said} {path!r}, and {why}. Files are read from its own folder only ({folder}); put the file there and "
            "name it by its place in the folder, as @model_path/weights/weight.bin."
        )
    return folder / relative


def _stays_within(folder: Path, relative: str) -> bool:
    try:
        return (folder / relative).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links that lead to each other
        return False


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
