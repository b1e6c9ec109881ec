"""Types and constants through their messages and back, and as coremltools writes them."""

import numpy as np
import pytest
from coremltools.converters.mil.backend.mil import helper
from coremltools.converters.mil.mil import types
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from torchane.inspect import schema
from torchane.inspect.proto_values import CODES, Malformed, read_type, read_value, write_type, write_value
from torchane.mil.ir import Blob, Literal
from torchane.mil.types import FP16, FP32, STRING, DictType, DType, ListType, StateType, TensorType, TupleType

SHAPES = st.lists(st.none() | st.integers(0, 1 << 40), max_size=4).map(tuple)
TENSORS = st.builds(TensorType, st.sampled_from(list(CODES)), SHAPES)
TYPES = st.recursive(
    TENSORS | TENSORS.map(StateType),
    lambda inner: (
        st.builds(ListType, inner, st.none() | st.integers(0, 9))
        | st.lists(inner, max_size=3).map(tuple).map(TupleType)
        | st.builds(DictType, inner, inner)
    ),
    max_leaves=5,
)
NUMBERS = [dtype for dtype in CODES if dtype is not STRING]


def through(value: Literal) -> Literal:
    message = schema.Value()
    write_value(value, message)
    return read_value(schema.Value.FromString(message.SerializeToString()))


@given(TYPES)
def test_types_come_back(type_):
    message = schema.ValueType()
    write_type(type_, message)
    assert read_type(schema.ValueType.FromString(message.SerializeToString())) == type_


@given(st.data(), st.sampled_from(NUMBERS))
def test_tensors_come_back_to_the_bit(data, dtype):
    shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    bits = data.draw(arrays.arrays(np.uint8, (int(np.prod(shape)), dtype.numpy.itemsize)))
    array = bits.view(dtype.numpy).reshape(shape) if dtype is not DType.BOOL else (bits % 2 == 1).reshape(shape)
    if dtype.bits < 8:
        low = -8 if dtype is DType.INT4 else 0
        array = np.asarray(bits.astype(np.int64).reshape(shape) % (1 << dtype.bits) + low, dtype.numpy)
    value = Literal(TensorType(dtype, shape), array)
    came = through(value)
    if dtype is DType.FP32:  # a NaN's payload may be changed on its way through a Python float
        np.testing.assert_array_equal(came.value, value.value)
    else:
        assert came == value


@pytest.mark.parametrize("value", [
    Literal(TensorType(STRING), "a"),
    Literal(TensorType(STRING, (2,)), ("a", "ü")),
    Literal(TensorType(STRING, (0,)), ()),
    Literal(TensorType(FP16, (4, 4)), Blob("@model_path/weights/weight.bin", 64)),
    Literal(ListType(TensorType(STRING), 1), (Literal(TensorType(STRING), "x"),)),
    Literal(TupleType((TensorType(FP32),)), (Literal(TensorType(FP32), np.array(2, np.float32)),)),
    Literal(DictType(TensorType(STRING), TensorType(STRING)), ()),
], ids=str)  # fmt: skip
def test_other_constants_come_back(value):
    assert through(value) == value


@pytest.mark.parametrize(("dtype", "builtin"), [
    (DType.FP16, types.fp16), (DType.FP32, types.fp32), (DType.INT8, types.int8), (DType.UINT8, types.uint8),
    (DType.INT16, types.int16), (DType.UINT16, types.uint16), (DType.INT32, types.int32), (DType.BOOL, types.bool),
])  # fmt: skip
def test_numbers_are_stored_as_coremltools_stores_them(dtype, builtin):
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(types.nptype_from_builtin(builtin))
    ours = schema.Value()
    write_value(Literal(TensorType(dtype, (2, 3)), array.astype(dtype.numpy)), ours)
    theirs = helper.create_tensor_value(array)
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


def spoiled(change) -> schema.Value:
    message = schema.Value()
    write_value(Literal(TensorType(FP32, (2,)), np.ones(2, np.float32)), message)
    change(message)
    return message


@pytest.mark.parametrize(("change", "reason"), [
    (lambda m: m.type.Clear(), "has no type"),
    (lambda m: setattr(m.type.tensorType, "dataType", 99), "element type 99"),
    (lambda m: setattr(m.type.tensorType, "rank", 7), "rank 7 and 1 sizes"),
    (lambda m: setattr(m.type.tensorType, "rank", -1), "rank -1 and 1 sizes"),
    (lambda m: m.type.tensorType.dimensions[0].Clear(), "neither a number nor unknown"),
    (lambda m: setattr(m.type.tensorType.dimensions[0].unknown, "variadic", False), "open type"),
    (lambda m: setattr(m.type.tensorType.dimensions[0].constant, "size", 1 << 60), "has 2 values instead of"),
    (lambda m: m.immediateValue.tensor.strings.values.extend(("a", "b")), "given as strings"),
    (lambda m: setattr(m.immediateValue.tensor.bytes, "values", b"abc"), "3 bytes instead of 8"),
    (lambda m: m.immediateValue.list.SetInParent(), "is given as list"),
    (lambda m: m.ClearField("immediateValue"), "has no value"),
    (lambda m: m.type.stateType.wrappedType.listType.type.tensorType.Clear(), "element type 0"),
])  # fmt: skip
def test_what_does_not_fit_is_named(change, reason):
    with pytest.raises(Malformed, match=reason):
        read_value(spoiled(change))


def test_a_rank_that_no_array_has_is_refused_before_its_sizes_are_multiplied():
    message = schema.ValueType()
    message.tensorType.dataType, message.tensorType.rank = CODES[FP32], 100_000
    for _ in range(100_000):
        message.tensorType.dimensions.add().constant.size = (1 << 64) - 1
    with pytest.raises(Malformed, match="the most is 32"):
        read_type(message)
