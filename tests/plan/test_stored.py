"""A lowered program survives the way to a file and back, and nothing else is taken for one."""

import hashlib
import json
from collections import Counter

import pytest

from torchane.abi.ports import PortLayout
from torchane.abi.ranges import Bound, Form, Measure, Ranges
from torchane.errors import ParseError
from torchane.plan import PortSpec, ProgramSpec
from torchane.plan.stored import from_bytes, to_bytes

PORT = PortSpec("x", PortLayout((2, 48), (1, 0), (1, 48, 1, 32), 2))
RANGES = Ranges(
    ("i0", "v0"), (Form((("i0", 1), ("v0", -2))),), (Form(),), (Measure("row", 0, Form.var("i0")),),
    (Bound(0, Form.var("v0"), 14, 15, "v0", "a product", (-1, 0, 3)), Bound(0, Form(), 14, 15, None, "a sum")), 2,
)  # fmt: skip


def make(ranges: Ranges | None = None) -> ProgramSpec:
    return ProgramSpec("", "program(1.3)\n\u00e9", {"weights/a.bin": b"\x00\n\xff", "weights/b.bin": b""}, (PORT,), (PORT, PORT), Counter(mul=3), 7, ranges)


@pytest.mark.parametrize("ranges", [None, RANGES], ids=["plain", "range-controlled"])
def test_a_program_comes_back_as_it_was(ranges: Ranges | None) -> None:
    assert from_bytes(to_bytes(make(ranges), "key"), "key") == make(ranges)


def test_every_flipped_byte_and_every_shortened_file_is_refused() -> None:
    data = to_bytes(make(RANGES), "key")
    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= 1
        for wrong in (bytes(damaged), data[:i]):
            with pytest.raises(ParseError):
                from_bytes(wrong, "key")


def test_a_program_under_another_name_is_refused() -> None:
    with pytest.raises(ParseError, match="it is of key, and lies under other"):
        from_bytes(to_bytes(make(), "key"), "other")


@pytest.mark.parametrize(
    "change",
    [
        {"macs": -1}, {"macs": True}, {"inputs": [["x", [2], [0], [1, 1, 1, 32], 3]]}, {"inputs": [["x"]]}, {"text": 10**9},
        {"blobs": 3}, {"op_counts": []}, {"ranges": []}, {"outputs": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_header_of_another_shape_is_refused_though_its_digest_is_right(change: dict) -> None:
    magic, _, rest = to_bytes(make(), "key").split(b"\n", 2)
    header, rest = rest.split(b"\n", 1)
    body = json.dumps({**json.loads(header), **change}).encode() + b"\n" + rest
    with pytest.raises(ParseError, match="header is not a lowered program's"):
        from_bytes(b"\n".join((magic, hashlib.sha256(body).hexdigest().encode(), body)), "key")
