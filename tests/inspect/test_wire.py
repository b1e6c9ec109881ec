"""Places in a protobuf's bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchane.inspect import schema
from torchane.inspect.wire import MAX_DEPTH, fault, locate

MODEL = schema.Model.DESCRIPTOR


def nested(number: int, content: bytes) -> bytes:
    """A field of bytes; for short content and small numbers."""
    size = len(content)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    tag = number << 3 | 2
    return (bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])) + length + content


@pytest.mark.parametrize(("data", "offset", "reason"), [
    (b"\x08", 1, "ends within a number"),
    (b"\x08" + b"\xff" * 11, 1, "longer than ten bytes"),
    (b"\x00\x00", 0, "field has the number 0"),
    (b"\x0f", 0, "unknown wire type 7"),
    (b"\x12\x05abc", 0, "needs 5 bytes and 3 are left"),
    (b"\x08\x01\x12\x03\x0a\x05a", 4, "needs 5 bytes and 1 are left"),
    (nested(2, nested(100, nested(3, b"\xff\xfe"))), 7, "is not UTF-8"),
    (b"\x0b", 1, "does not end"),
    (b"\x0c", 0, "ends that did not begin"),
])  # fmt: skip
def test_the_first_fault_is_found(data, offset, reason):
    found, what = fault(data, MODEL)
    assert (found, reason in what) == (offset, True), (found, what)


def test_messages_that_lie_too_deep_are_a_fault():
    value = b""
    for _ in range(MAX_DEPTH):
        value = nested(1, nested(3, value))[:120] if len(value) > 110 else nested(3, nested(1, value))
    found, _ = fault(value, schema.ValueType.DESCRIPTOR)
    assert found >= 0


@given(st.binary(max_size=200))
def test_a_fault_lies_within_the_data(data):
    offset, _ = fault(data, MODEL)
    assert 0 <= offset <= len(data)


def test_locate_follows_fields_places_and_keys():
    entry = nested(1, b"main") + nested(2, nested(2, b"CoreML8"))
    other = nested(1, b"a") + nested(2, b"")
    data = nested(1, b"") + nested(2, other) + nested(2, entry)
    start = locate(data, ((2, "main"), (2, None)))
    assert data[start : start + 9] == nested(2, b"CoreML8")
    assert locate(data, ((2, 0),)) == data.index(other)
    assert locate(data, ((2, "main"), (9, 3))) == data.index(entry)  # as far as it leads
    assert locate(data, ((7, None),)) == 0


@given(
    st.binary(max_size=60), st.lists(st.tuples(st.integers(1, 9), st.none() | st.integers(0, 2) | st.text(max_size=2)))
)
def test_locate_stays_within_the_data(data, steps):
    assert 0 <= locate(data, steps) <= len(data)
