"""Types and constants between MIL's protobuf messages and ours.

A number is stored as Apple's tools store it: fp32 in `floats`, fp64 in `doubles`, int16 to int32 in `ints`, int64 and
uint64 in `longInts`, bool in `bools`, everything else in `bytes`, little-endian, elements below eight bits packed.
Reading takes any of these fields for any type. Source: coremltools, converters/mil/backend/mil/helper.py.
"""

import numpy as np
from google.protobuf.message import Message

from torchane.inspect import schema
from torchane.mil.blobs import pack, unpack
from torchane.mil.formats import narrowed
from torchane.mil.ir import Blob, Literal
from torchane.mil.types import MAX_RANK, STRING, DictType, DType, ListType, StateType, TensorType, TupleType, Type

#: MIL.proto, enum DataType.
CODES: dict[DType, int] = {
    DType.BOOL: 1, DType.STRING: 2, DType.FP16: 10, DType.FP32: 11, DType.FP64: 12, DType.BF16: 13,
    DType.INT8: 21, DType.INT16: 22, DType.INT32: 23, DType.INT64: 24, DType.INT4: 25,
    DType.UINT8: 31, DType.UINT16: 32, DType.UINT32: 33, DType.UINT64: 34, DType.UINT4: 35,
    DType.UINT2: 36, DType.UINT1: 37, DType.UINT6: 38, DType.UINT3: 39,
    DType.FP8E4M3FN: 40, DType.FP8E5M2: 41,
}  # fmt: skip
_DTYPES = {code: dtype for dtype, code in CODES.items()}

_FIELDS = {
    DType.FP32: "floats", DType.FP64: "doubles", DType.INT16: "ints", DType.UINT16: "ints", DType.INT32: "ints",
    DType.INT64: "longInts", DType.UINT64: "longInts", DType.BOOL: "bools", DType.STRING: "strings",
}  # fmt: skip
_STORED = {"floats": np.float32, "doubles": np.float64, "ints": np.int32, "longInts": np.int64, "bools": np.bool_}


class Malformed(Exception):
    """A message does not say what a type or constant needs; the message is the reason."""


def read_type(message: Message) -> Type:
    """Our type for a ValueType. Raises Malformed."""
    which = message.WhichOneof("type")
    if which == "tensorType":
        return _tensor_type(message.tensorType)
    if which == "listType":
        return ListType(read_type(message.listType.type), _dimension(message.listType.length))
    if which == "tupleType":
        return TupleType(tuple(read_type(item) for item in message.tupleType.types))
    if which == "dictionaryType":
        return DictType(read_type(message.dictionaryType.keyType), read_type(message.dictionaryType.valueType))
    if which == "stateType":
        wrapped = read_type(message.stateType.wrappedType)
        if not isinstance(wrapped, TensorType):
            raise Malformed(f"a state holds a tensor, not a {wrapped}.")
        return StateType(wrapped)
    raise Malformed("a value has no type.")


def _tensor_type(message: Message) -> TensorType:
    if message.dataType not in _DTYPES:
        raise Malformed(f"a tensor has the element type {message.dataType}, which MIL does not know.")
    if message.rank != len(message.dimensions):
        raise Malformed(f"a tensor has the rank {message.rank} and {len(message.dimensions)} sizes.")
    if message.rank > MAX_RANK:
        raise Malformed(f"a tensor has the rank {message.rank}; the most is {MAX_RANK}.")
    if message.attributes:
        raise Malformed(f"a tensor's type has attributes ({', '.join(message.attributes)}), which MIL text cannot say.")
    return TensorType(_DTYPES[message.dataType], tuple(map(_dimension, message.dimensions)))


def _dimension(message: Message) -> int | None:
    which = message.WhichOneof("dimension")
    if which == "constant":
        return message.constant.size
    if which is None or message.unknown.variadic:
        raise Malformed("a size is neither a number nor unknown.")
    return None


def write_type(type_: Type, message: Message) -> None:
    """Fills a ValueType."""
    if isinstance(type_, TensorType):
        message.tensorType.dataType = CODES[type_.dtype]
        message.tensorType.rank = type_.rank
        for size in type_.shape:
            _write_dimension(size, message.tensorType.dimensions.add())
    elif isinstance(type_, ListType):
        write_type(type_.element, message.listType.type)
        _write_dimension(type_.length, message.listType.length)
    elif isinstance(type_, TupleType):
        message.tupleType.SetInParent()
        for item in type_.items:
            write_type(item, message.tupleType.types.add())
    elif isinstance(type_, DictType):
        write_type(type_.key, message.dictionaryType.keyType)
        write_type(type_.value, message.dictionaryType.valueType)
    else:
        write_type(type_.tensor, message.stateType.wrappedType)


def _write_dimension(size: int | None, message: Message) -> None:
    if size is None:
        message.unknown.variadic = False
    else:
        message.constant.size = size


def read_value(message: Message) -> Literal:
    """Our constant for a Value. Raises Malformed."""
    type_ = read_type(message.type)
    which = message.WhichOneof("value")
    if which == "blobFileValue":
        return Literal(type_, Blob(message.blobFileValue.fileName, message.blobFileValue.offset))
    if which is None:
        raise Malformed(f"a constant {type_} has no value.")
    value = message.immediateValue
    kind = value.WhichOneof("value")
    if isinstance(type_, TensorType) and kind == "tensor":
        return _read_tensor(type_, value.tensor)
    if isinstance(type_, ListType) and kind == "list":
        return Literal(type_, tuple(_read_item(item, type_.element) for item in value.list.values))
    if isinstance(type_, TupleType) and kind == "tuple" and len(value.tuple.values) == len(type_.items):
        return Literal(type_, tuple(map(_read_item, value.tuple.values, type_.items)))
    if isinstance(type_, DictType) and kind == "dictionary":
        pairs = value.dictionary.values
        items = tuple((_read_item(pair.key, type_.key), _read_item(pair.value, type_.value)) for pair in pairs)
        return Literal(type_, items)
    raise Malformed(f"a constant {type_} is given as {kind or 'nothing'}.")


def _read_item(message: Message, declared: Type) -> Literal:
    """A constant within a constant."""
    item = read_value(message)
    if item.type != declared:
        raise Malformed(f"a {item.type} stands where a {declared} is declared.")
    return item


def _read_tensor(type_: TensorType, message: Message) -> Literal:
    if not type_.is_fixed:
        raise Malformed(f"a constant cannot have the open type {type_}.")
    field = message.WhichOneof("value")
    if field == "bytes":
        return Literal(type_, _from_bytes(type_, message.bytes.values))
    stored = () if field is None else getattr(message, field).values
    if len(stored) != type_.size:
        raise Malformed(f"a constant {type_} has {len(stored):,} values instead of {type_.size:,}.")
    if len(stored) and (field == "strings") != (type_.dtype is STRING):
        raise Malformed(f"a constant {type_} is given as {field}.")
    if type_.dtype is STRING:
        return Literal(type_, tuple(stored) if type_.rank else stored[0])
    array = np.array(stored, _STORED.get(field, type_.dtype.numpy))
    if type_.dtype.numpy != array.dtype:
        array = narrowed(array, type_.dtype)
    return Literal(type_, array.reshape(type_.shape))


def _from_bytes(type_: TensorType, data: bytes) -> np.ndarray:
    dtype = type_.dtype
    if dtype is STRING:
        raise Malformed(f"a constant {type_} is given as bytes.")
    if len(data) != type_.size_bytes:
        raise Malformed(f"a constant {type_} has {len(data):,} bytes instead of {type_.size_bytes:,}.")
    if dtype.bits < 8:
        return unpack(np.frombuffer(data, np.uint8), type_.size, dtype).reshape(type_.shape)
    return np.frombuffer(data, dtype.numpy.newbyteorder("<")).astype(dtype.numpy, copy=False).reshape(type_.shape)


def write_value(literal: Literal, message: Message) -> None:
    """Fills a Value."""
    write_type(literal.type, message.type)
    value, type_ = literal.value, literal.type
    if isinstance(value, Blob):
        message.blobFileValue.fileName = value.path
        message.blobFileValue.offset = value.offset
    elif isinstance(type_, TensorType):
        _write_tensor(type_.dtype, value, message.immediateValue.tensor)
    elif isinstance(type_, DictType):
        message.immediateValue.dictionary.SetInParent()
        for key, item in value:  # type: ignore[attr-defined]
            pair = message.immediateValue.dictionary.values.add()
            write_value(key, pair.key)
            write_value(item, pair.value)
    else:
        held = message.immediateValue.list if isinstance(type_, ListType) else message.immediateValue.tuple
        held.SetInParent()
        for item in value:  # type: ignore[attr-defined]
            write_value(item, held.values.add())


def _write_tensor(dtype: DType, value: object, message: Message) -> None:
    field = _FIELDS.get(dtype, "bytes")
    held = getattr(message, field)
    held.SetInParent()
    if dtype is STRING:
        held.values.extend((value,) if isinstance(value, str) else value)
        return
    assert isinstance(value, np.ndarray), "a constant of numbers is an array"
    if field == "bytes":
        held.values = pack(value, dtype)
    else:
        held.values.extend(value.astype(_STORED[field], copy=False).reshape(-1).tolist())


def string(value: str) -> schema.Value:
    """A Value that holds a string."""
    message = schema.Value()
    write_value(Literal(TensorType(STRING), value), message)
    return message
