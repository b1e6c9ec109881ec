"""The container GGUF, version 2 and 3, little-endian: read with bounds, so that a damaged or hostile file is an error.

    "GGUF" u32 version | u64 tensors, u64 keys | keys with values | names, shapes, types, offsets | pad | tensors, each padded

The gguf package writes it. Its reader is not for files of strangers: a count of 2^60 keeps it busy for ever. Here no count is believed
that the rest of the file could not hold. Source: ggml, docs/gguf.md.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchane.convert.files import open_input
from torchane.convert.model import Shape
from torchane.errors import ParseError, shown

MAGIC = b"GGUF"
ALIGNMENT = "general.alignment"
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_LARGEST_HEADER_BYTES = 256 << 20  # a vocabulary of 256,000 tokens with merges has 15 MB

#: ggml's number of a type -> its name, numbers in a block, bytes of a block. Source: gguf-py, constants.py.
F32, F16, Q8_0, BF16 = 0, 1, 8, 30
TYPES: Mapping[int, tuple[str, int, int]] = {F32: ("F32", 1, 4), F16: ("F16", 1, 2), Q8_0: ("Q8_0", 32, 34), BF16: ("BF16", 1, 2)}
#: Types that are not read, for the message.
OTHERS = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 34: "TQ1_0", 39: "MXFP4"}


@dataclass(frozen=True)
class Stored:
    """A tensor: its shape as torch has it (the slowest axis first), ggml's type, where its bytes begin in the file, how many."""

    shape: Shape
    type: int
    begin: int
    size_bytes: int


class GgufFile:
    """keys: the values by their names. tensors: by theirs. Raises ParseError for anything that is no whole GGUF."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_input(path) as file:
            self._size = file.seek(0, 2)
            file.seek(0)
            self._data = file.read(min(self._size, _LARGEST_HEADER_BYTES))
        self._at = 0
        if self._take(4) != MAGIC:
            raise ParseError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}.")
        version = self._scalar(4)
        if version not in (2, 3):
            raise ParseError(f"{path} is GGUF of version {version:,}; 2 and 3 are read. A big-endian file shows such a number, too.")
        tensors, keys = self._count(8 + 4 + 8 + 4 + 8), self._count(8 + 4 + 1)
        self.keys: dict[str, Any] = {}
        for _ in range(keys):
            key = self._text()
            self.keys[key] = self._value(self._scalar(4), key)
        self.tensors = self._tensors(tensors)
        self._data = b""

    def read(self, name: str) -> Tensor:
        """A tensor: bf16 and fp16 as they are, F32 and Q8_0 in float32."""
        stored = self.tensors[name]
        with open_input(self.path) as file:
            file.seek(stored.begin)
            data = bytearray(file.read(stored.size_bytes))
        if len(data) != stored.size_bytes:
            raise ParseError(f"{self.path} became shorter while it was read.")
        if stored.type == Q8_0:
            blocks = np.frombuffer(data, np.dtype([("scale", "<f2"), ("whole", "i1", 32)]))
            values = blocks["whole"].astype(np.float32) * blocks["scale"].astype(np.float32)[:, None]
            return torch.from_numpy(values).reshape(stored.shape)
        dtype = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}[stored.type]
        return torch.frombuffer(data, dtype=dtype).reshape(stored.shape) if data else torch.zeros(stored.shape, dtype=dtype)

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise ParseError(f"{self.path} ends within its header, at {self._at:,} of {self._size:,} bytes. It is cut short or damaged: copy it again.")
        self._at += count
        return self._data[self._at - count : self._at]

    def _scalar(self, kind: int) -> Any:
        form = _SCALARS[kind]
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _count(self, least_bytes: int) -> int:
        """A count of things that take at least so many bytes each."""
        count = self._scalar(10)
        if count * least_bytes > len(self._data) - self._at:
            raise ParseError(f"{self.path}: its header counts {count:,} entries at {self._at - 8:,}, more than the file could hold. It is cut short or damaged.")
        return count

    def _text(self) -> str:
        at = self._at
        try:
            return self._take(self._count(1)).decode()
        except UnicodeDecodeError as error:
            raise ParseError(f"{self.path}: the text at {at:,} is not UTF-8. It is damaged.") from error

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text()
        if kind in _SCALARS:
            return self._scalar(kind)
        if kind != _ARRAY:
            raise ParseError(f"{self.path}: {shown(key)} is of type {kind}, which GGUF has not. It is damaged.")
        inner = self._scalar(4)
        if inner == _STRING:
            return [self._text() for _ in range(self._count(8))]
        if inner not in _SCALARS:  # arrays of arrays are allowed, and nobody writes them
            raise ParseError(f"{self.path}: {shown(key)} is an array of type {inner}, which is not read.")
        form = _SCALARS[inner]
        count = self._count(struct.calcsize(form))
        return list(struct.unpack(f"<{count}{form[1:]}", self._take(count * struct.calcsize(form))))

    def _tensors(self, count: int) -> dict[str, Stored]:
        found: dict[str, tuple[Shape, int, int]] = {}
        for _ in range(count):
            name, dimensions = self._text(), self._scalar(4)
            if not 1 <= dimensions <= _MOST_DIMENSIONS or name in found:
                raise ParseError(f"{self.path}: the tensor {shown(name)} has {dimensions} axes or is there twice. It is damaged.")
            shape = tuple(self._scalar(10) for _ in range(dimensions))[::-1]
            found[name] = (shape, self._scalar(4), self._scalar(10))
        alignment = self.keys.get(ALIGNMENT, 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ParseError(f"{self.path}: {ALIGNMENT} is {shown(alignment)}, and it must be a power of two. It is damaged.")
        begin = -(-self._at // alignment) * alignment
        return {name: self._stored(name, *about, begin) for name, about in found.items()}

    def _stored(self, name: str, shape: Shape, kind: int, offset: int, begin: int) -> Stored:
        if kind not in TYPES:
            raise ParseError(
                f"{self.path}: {shown(name)} is {OTHERS.get(kind, f'of ggml type {kind}')}; F32, F16, BF16 and Q8_0 are read. "
                "Take the file of the same model in one of these, or its Hugging Face folder."
            )
        _, numbers, size = TYPES[kind]
        if shape[-1] % numbers:
            raise ParseError(f"{self.path}: {shown(name)} has rows of {shape[-1]:,}, which blocks of {numbers} do not divide. It is damaged.")
        bytes_ = math.prod(shape) // numbers * size
        if begin + offset + bytes_ > self._size:
            raise ParseError(f"{self.path} has {self._size:,} bytes, and {shown(name)} would end at {begin + offset + bytes_:,}. It is cut short or damaged: copy it again.")
        return Stored(shape, kind, begin + offset, bytes_)
