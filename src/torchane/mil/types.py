"""The types of MIL values, immutable and compared by what they say.

A shape holds sizes; `None` stands for `?`, a size that is not known before run time. A scalar is a
tensor of rank 0: whether it is spelled `fp16` or `tensor<fp16, []>` is the printer's business.
Source: coremltools, mlmodel/format/MIL.proto, DataType.
"""

import enum
import math
from dataclasses import dataclass

import numpy as np


class DType(enum.Enum):
    """An element type: its MIL name, its size in bits, and the NumPy type that carries its values.

    Sub-byte integers are carried in the next wider NumPy type; bf16 and the fp8 types, which NumPy
    lacks, are carried as their bit patterns (uint16, uint8).
    """

    FP16 = ("fp16", 16, np.float16)
    FP32 = ("fp32", 32, np.float32)
    FP64 = ("fp64", 64, np.float64)
    BF16 = ("bf16", 16, np.uint16)
    FP8E4M3FN = ("fp8e4m3fn", 8, np.uint8)
    FP8E5M2 = ("fp8e5m2", 8, np.uint8)
    INT4 = ("int4", 4, np.int8)
    INT8 = ("int8", 8, np.int8)
    INT16 = ("int16", 16, np.int16)
    INT32 = ("int32", 32, np.int32)
    INT64 = ("int64", 64, np.int64)
    UINT1 = ("uint1", 1, np.uint8)
    UINT2 = ("uint2", 2, np.uint8)
    UINT3 = ("uint3", 3, np.uint8)
    UINT4 = ("uint4", 4, np.uint8)
    UINT6 = ("uint6", 6, np.uint8)
    UINT8 = ("uint8", 8, np.uint8)
    UINT16 = ("uint16", 16, np.uint16)
    UINT32 = ("uint32", 32, np.uint32)
    UINT64 = ("uint64", 64, np.uint64)
    BOOL = ("bool", 8, np.bool_)
    STRING = ("string", 0, np.object_)

    def __init__(self, mil_name: str, bits: int, numpy_type: type):
        self.mil_name = mil_name
        self.bits = bits
        self.numpy = np.dtype(numpy_type)

    @property
    def is_float(self) -> bool:
        return self in _FLOATS

    @property
    def is_integer(self) -> bool:
        return self.mil_name.startswith(("int", "uint"))

    def __repr__(self) -> str:
        return self.mil_name

    __hash__ = object.__hash__  # there is one of each; enum's own goes by the name, through Python


_FLOATS = {DType.FP16, DType.FP32, DType.FP64, DType.BF16, DType.FP8E4M3FN, DType.FP8E5M2}

#: Every element type by the name that MIL text gives it.
DTYPES: dict[str, DType] = {dtype.mil_name: dtype for dtype in DType}

#: Axes of a tensor that is read from a file: fewer than NumPy's most, and real programs stop at five.
MAX_RANK = 32

FP16, FP32, INT32, BOOL, STRING = DType.FP16, DType.FP32, DType.INT32, DType.BOOL, DType.STRING


@dataclass(frozen=True)
class TensorType:
    """An array of one element type; rank 0 is a scalar."""

    dtype: DType
    shape: tuple[int | None, ...] = ()

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_fixed(self) -> bool:
        """Every size is known."""
        return None not in self.shape

    @property
    def size(self) -> int:
        """How many elements; asserts that every size is known."""
        assert self.is_fixed, f"{self} has no fixed size"
        return math.prod(self.shape)  # type: ignore[arg-type]

    @property
    def size_bytes(self) -> int:
        """Bytes when stored densely, sub-byte elements packed."""
        return (self.size * self.dtype.bits + 7) // 8

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"tensor<{self.dtype.mil_name}, [{sizes}]>"


@dataclass(frozen=True)
class ListType:
    """`list<element, length>`; a length of None is `?`."""

    element: "Type"
    length: int | None = None

    def __str__(self) -> str:
        return f"list<{self.element}, {'?' if self.length is None else self.length}>"


@dataclass(frozen=True)
class TupleType:
    items: tuple["Type", ...]

    def __str__(self) -> str:
        return f"tuple<{', '.join(map(str, self.items))}>"


@dataclass(frozen=True)
class DictType:
    key: "Type"
    value: "Type"

    def __str__(self) -> str:
        return f"dict<{self.key}, {self.value}>"


@dataclass(frozen=True)
class StateType:
    """A tensor that lives between calls: read with `read_state`, changed with `write_state`."""

    tensor: TensorType

    def __str__(self) -> str:
        return f"state<{self.tensor}>"


Type = TensorType | ListType | TupleType | DictType | StateType


def dtype_of(array: np.ndarray) -> DType:
    """The MIL element type of a NumPy array. Raises KeyError for types MIL lacks (complex, object)."""
    return _BY_NUMPY[array.dtype]


_BY_NUMPY = {
    dtype.numpy: dtype
    for dtype in (
        DType.FP16, DType.FP32, DType.FP64, DType.INT8, DType.INT16, DType.INT32, DType.INT64,
        DType.UINT8, DType.UINT16, DType.UINT32, DType.UINT64, DType.BOOL,
    )
}  # fmt: skip
