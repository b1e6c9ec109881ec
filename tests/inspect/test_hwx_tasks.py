"""Task descriptors: linked lists, streams, packets; and registers by name."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inspect_samples import dense, sparse, stream_file

from torchane.inspect import hwx
from torchane.inspect.hwx.registers import header_of, name_of
from torchane.inspect.hwx.tasks import Gap, Words, read_tasks


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


@given(st.binary(max_size=400), st.sampled_from([None, 4, 7, 8, 11, 17, 19, 20, 24, 36]))
def test_any_bytes_come_back(data, version):
    assert read_tasks(data, 64, version).to_bytes() == data


def test_a_linked_list_is_followed_to_its_end():
    header = [0] * 10
    first = [*header, 0x04000000, 11, 22, 0]
    first[7] = 4 * len(first)
    second = [*header, 0x0000C800, 33]
    stream = read_tasks(words(*first, *second), 0x4000, 7)
    assert [task.offset for task in stream.tasks] == [0x4000, 0x4000 + 4 * len(first)]
    assert [task.packets[0].values for task in stream.tasks] == [(11, 22), (33,)]
    assert stream.tasks[0].parts[-1] == Words((0,))


@pytest.mark.parametrize("link", [0, 4, 2, 40, 1 << 31, 0xFFFFFFFF])
def test_a_link_that_does_not_lead_on_ends_the_list(link):
    header = [0] * 10
    header[7] = link
    stream = read_tasks(words(*header, 0, 0), 0, 7)
    assert len(stream.tasks) == 1


def test_a_packet_that_is_cut_off_is_shown_as_words():
    stream = read_tasks(words(*[0] * 10, 0xFC000000, 1), 0, 7)
    assert stream.tasks[0].parts == (Words((0xFC000000, 1)),)


@pytest.mark.parametrize("subtype", [5, 6, 7, 9, 10])
def test_a_streams_packets_name_their_registers(subtype):
    found = hwx.parse(stream_file(subtype))
    (stream,) = found.tasks
    assert len(stream.tasks) == 2 and isinstance(stream.parts[0], Gap)
    for task in stream.tasks:
        written = dict(pair for packet in task.packets for pair in zip(packet.addresses, packet.values))
        base = 0x0D00 if subtype == 5 else 0x4900
        if subtype != 6:  # our sample for it is laid out as for H16
            assert written == {0: 0x22, 4: 64, 8: 1, base: 0x82, base + 4: 5, base + 16: 7}


def test_sparse_packets_write_where_their_mask_says():
    body = sparse(0x100, 1, {0: 2, 15: 3})
    stream = read_tasks(bytes(16) + words(9 + len(body) << 16, *[0] * 8, *body), 0, 17)
    (packet,) = stream.tasks[0].packets
    assert packet.addresses == (0x100, 0x104, 0x140)


def test_address_packets_of_m6_name_their_slot():
    body = dense(0x1544 * 4, 7)
    body[0] |= 1 << 29 | 4 << 21
    stream = read_tasks(bytes(16) + words(9 + len(body) << 16, *[0] * 8, *body), 0, 24)
    assert stream.tasks[0].packets[0].slot == 4


def test_a_header_of_another_length_is_found():
    body = dense(0x1000, *range(20))
    stream = read_tasks(bytes(16) + words(12 + len(body) << 16, *[0x1F8000] * 11, *body), 0, 24)
    assert len(stream.tasks[0].header) == 12
    assert stream.tasks[0].packets[0].values == tuple(range(20))


def test_an_unknown_generation_is_one_gap():
    assert read_tasks(b"abcd", 5, None).parts == (Gap(5, b"abcd"),)


@pytest.mark.parametrize(("version", "address", "name"), [
    (7, 0x1F808, ("KernelDMA", "CoeffDMAConfig[0]")),
    (7, 0x1F8C4, ("KernelDMA", "CoeffBfrSize[15]")),
    (7, 0x1F800, ("KernelDMA", "?+0x00")),
    (7, 0x0000, ("Common", "InDim")),
    (7, 0xC804, ("NE", "MACCfg")),
    (7, 0x13838, ("TileDMASrc", "Fmt")),
    (7, 0x17804, ("TileDMADst", "BaseAddr")),
    (7, 0x17818, ("TileDMADst", "Fmt")),
    (7, 0x99999, ("?", "?0x99999")),
    (11, 0x1918, ("KernelDMA", "CoeffDMAConfig[0]")),
    (11, 0x1958, ("KernelDMA", "CoeffBaseAddr[0]")),
    (8, 0x5598, ("KernelDMA", "CoeffBfrSize[0]")),
    (17, 0x5520, ("KernelDMA", "CoeffDMAConfig[0]")),
    (17, 0x55E0, ("KernelDMA", "BiasConfig")),
    (17, 0x4918, ("NE", "RoundMode")),
    (17, 0x4528, ("PE", "LUT[4]")),
    (17, 0x4D68, ("TileDMASrc", "Format[0]")),
    (17, 0x134A * 4, ("TileDMASrc", "Src2BaseLow")),  # GDE's word address
    (17, 0x4134, ("L2", "Src2GroupStride")),
    (24, 0x1346 * 4, ("TileDMASrc", "Src1Base")),     # M6S's word addresses
    (24, 0x134C * 4, ("TileDMASrc", "Src2Base")),
    (24, 0x1444 * 4, ("TileDMADst", "Base")),
    (24, 0x1544 * 4, ("KernelDMA", "KernelBase")),
    (17, 0x514C, ("TileDMADst", "?+0x4c")),
    (17, 0x414C, ("L2", "ResultBase")),
    (19, 0x4110, ("L2", "?+0x10")),
    (20, 0x4110, ("L2", "Src1Base")),
    (20, 0x0028, ("Common", "ConvCfg")),
    (36, 0x0028, ("?", "?0x00028")),
])  # fmt: skip
def test_registers_have_the_names_of_the_reference(version, address, name):
    assert name_of(version, address)[:2] == name


def test_fields_are_cut_from_their_bits():
    _, _, fields = name_of(7, 0x1C)
    assert {field.name: field.of(0x5000A021) for field in fields} == {
        "Kw": 1, "Kh": 1, "OCGSize": 0, "Sx": 1, "Sy": 1, "Px": 0, "Py": 0, "Ox": 1, "Oy": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("version", "length", "names"), [
    (7, 10, ["Task", "Time", "LogEvents", "Exceptions", "DebugLogEvents", "DebugExceptions", "Flags", "Next", "Bases",
             "KernelBases"]),
    (11, 8, ["Task", "Time", "LogEvents", "Exceptions", "DebugLogEvents", "DebugExceptions", "LiveOuts", "Control"]),
    (17, 9, ["Task", "Time", "LogEvents", "Exceptions", "DebugLogEvents", "DebugExceptions", "LiveOuts", "?7",
             "Control"]),
])  # fmt: skip
def test_header_words_have_the_names_of_the_reference(version, length, names):
    assert [name for name, _ in header_of(version, length)] == names
