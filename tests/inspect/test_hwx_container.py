"""Compiled programs: every shared file comes back to the byte, and what it says agrees with itself."""

import struct
from itertools import pairwise

import pytest
from inspect_samples import h13_file, stream_file

from torchane.inspect import hwx
from torchane.inspect.errors import FormatError
from torchane.inspect.hwx import commands as cmd

NAMES = ("ops-conv-8a6bd4", "ops-conv-ea5905", "ops-gemm-ef7e5c", "ops-relu-d66a66", "ops-relu-dc54cc", "ops-sum")
SAMPLES = {"linked": h13_file(), **{f"stream {subtype}": stream_file(subtype) for subtype in (5, 6, 7, 9, 10, 11)}}


@pytest.fixture(params=NAMES)
def data(shared_data, request) -> bytes:
    return (shared_data / "hwx" / f"tinygrad-{request.param}.hwx").read_bytes()


def test_shared_files_come_back_to_the_byte(data):
    assert hwx.to_bytes(hwx.parse(data)) == data


def test_no_command_of_the_shared_files_is_unknown(data):
    assert not hwx.parse(data).of(cmd.Unknown)


def test_descriptors_of_the_shared_files_are_packets_to_the_last_word(data):
    (stream,) = hwx.parse(data).tasks
    (task,) = stream.parts
    assert [part.addresses[0] for part in task.packets] == [0x1F800, 0x0, 0x13800, 0x4800, 0x8800, 0xC800, 0x17800]
    assert len(task.packets) == len(task.parts)


def test_symbols_and_states_of_the_shared_files_agree_on_every_port(data):
    found = hwx.parse(data)
    shapes = {symbol.port.name: symbol.port for symbol in found.symbols if symbol.port is not None}
    states = [state for state in found.of(cmd.State) if state.flavor == cmd.PORT_STATE]
    assert len(states) == len(shapes) == len(found.of(cmd.PortAddress)) >= 2
    for state in states:
        shape = shapes[state.text_at(4)]
        assert [shape.sizes[axis] for axis in "nchw"] == [state.word(index) for index in (6, 7, 8, 9)]
        assert [shape.strides[axis] for axis in "nchw"] == [state.long(index) for index in (16, 18, 20, 22)]
        width = 64 * -(-2 * shape.sizes["w"] // 64)
        assert shape.strides["h"] == width and shape.strides["c"] == width * shape.sizes["h"]


def test_relocations_lead_to_the_bases_of_coefficients(shared_data):
    found = hwx.parse((shared_data / "hwx" / "tinygrad-ops-conv-8a6bd4.hwx").read_bytes())
    assert found.relocations == tuple((0x74 + 4 * lane, 0x05000002) for lane in range(3))


def test_tiles_are_one_for_each_lane(shared_data):
    found = hwx.parse((shared_data / "hwx" / "tinygrad-ops-gemm-ef7e5c.hwx").read_bytes())
    tiles = [symbol for symbol in found.symbols if symbol.tile is not None]
    assert sorted(tile.tile[1] for tile in tiles) == list(range(16))
    assert sorted(b.value - a.value for a, b in pairwise(tiles)) == [0x200] * 15


@pytest.mark.parametrize("name", SAMPLES)
def test_files_made_here_come_back_to_the_byte(name):
    assert hwx.to_bytes(hwx.parse(SAMPLES[name])) == SAMPLES[name]


def test_unknown_commands_are_kept():
    (unknown,) = (command for command in hwx.parse(h13_file()).of(cmd.Unknown) if command.code == 0x77)
    assert unknown.data == bytes(16)


def test_a_command_too_short_for_its_fields_is_kept_as_unknown():
    found = hwx.parse(h13_file())
    assert [command.code for command in found.of(cmd.Unknown)] == [0x31, 0x77]


def put(place: int, code: str, *values: int) -> bytes:
    data = bytearray(h13_file())
    struct.pack_into(code, data, place, *values)
    return bytes(data)


def place_of(kind: type) -> int:
    return hwx.parse(h13_file()).of(kind)[0].offset


SYMBOLS, SEGMENT = place_of(cmd.SymbolTable), place_of(cmd.Segment)


@pytest.mark.parametrize(("data", "offset", "reason"), [
    (b"", 0, "ends within its header"),
    (h13_file()[:31], 31, "ends within its header"),
    (put(0, "<I", 0xFEEDFACE), 0, "begins with 0xfeedface"),
    (put(20, "<I", 1 << 31), 20, "the commands would end"),
    (put(16, "<I", 0xFFFFFFFF), 32 + hwx.parse(h13_file()).header.commands_size, "the commands end"),
    (put(36, "<I", 4), 36, "has 4 bytes"),
    (put(36, "<I", 1 << 30), 36, "has 1,073,741,824 bytes"),
    (put(SYMBOLS + 12, "<I", 1 << 31), SYMBOLS, "the symbol table would fill"),
    (put(SYMBOLS + 8, "<I", 0), SYMBOLS, "the symbol table would fill"),
    (put(SYMBOLS + 20, "<I", 0xFFFFFFFF), SYMBOLS, "the symbols' texts would fill"),
    (put(SEGMENT + 72 + 40, "<Q", 1 << 60), SEGMENT, "the section __text of __TEXT would fill"),
    (put(SEGMENT + 72 + 60, "<I", 0xFFFFFFFF), SEGMENT, "the relocations of __text would fill"),
])  # fmt: skip
def test_damage_is_named_by_its_byte(data, offset, reason):
    with pytest.raises(FormatError, match=reason) as caught:
        hwx.parse(data, "model.hwx")
    assert caught.value.offset == offset


def bomb(name: bytes, copies: int) -> bytes:
    """A file of 2 MiB with many sections over all of it."""
    body = bytes(2 << 20)
    start = 32 + 72 + 80 * copies
    one = (
        name.ljust(16, b"\0") + bytes(16) + struct.pack("<QQIIIIIIII", 0, len(body), start, 0, start, 1000, 0, 0, 0, 0)
    )
    head = struct.pack("<II", 0x19, 72 + 80 * copies) + bytes(16)
    segment = head + struct.pack("<QQQQIIII", 0, 0, 0, len(body), 0, 0, copies, 0) + one * copies
    return struct.pack("<8I", 0xBEEFFACE, 0x80, 7, 2, 1, len(segment), 0, 0) + segment + body


@pytest.mark.parametrize(("name", "reason"), [(b"__text", "overlap"), (b"__const", "over and over")])
def test_sections_that_lie_over_each_other_cost_no_time(name, reason):
    with pytest.raises(FormatError, match=reason):
        hwx.parse(bomb(name, 10_000))


def test_a_second_symbol_table_is_refused():
    data = h13_file()
    table = struct.pack("<I", 2)
    spoiled = data.replace(struct.pack("<II", 0x77, 24), table + struct.pack("<I", 24))
    with pytest.raises(FormatError, match="second symbol table"):
        hwx.parse(spoiled)


def test_texts_that_are_shared_over_and_over_are_refused():
    long = 100_000
    count = 1000
    start = 32 + 24
    entries = struct.pack("<IBBHQ", 0, 0x0F, 0, 0, 0) * count
    table = struct.pack("<IIIIII", 2, 24, start, count, start + len(entries), long)
    header = struct.pack("<8I", 0xBEEFFACE, 0x80, 4, 2, 1, 24, 0, 0)
    with pytest.raises(FormatError, match="over and over"):
        hwx.parse(header + table + entries + b"x" * long)
