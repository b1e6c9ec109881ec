"""What is said of a .hwx."""

import json
import struct

import pytest
from inspect_samples import stream_file

from torchane.inspect import hwx
from torchane.inspect.hwx.describe import describe


def described(shared_data, name: str) -> dict:
    return describe(hwx.parse((shared_data / "hwx" / f"tinygrad-ops-{name}.hwx").read_bytes()))


@pytest.mark.parametrize(("name", "ports", "macs", "tiles"), [
    ("conv-8a6bd4", {"image": "input", "probs@output": "output"}, 9, 3),
    ("gemm-ef7e5c", {"image": "input", "probs@output": "output"}, 4096, 16),
    ("relu-dc54cc", {"image": "input", "probs@output": "output"}, 0, 0),
    ("sum", {"image": "input", "image2": "input", "probs@output": "output"}, 0, 0),
])  # fmt: skip
def test_shared_files(shared_data, name, ports, macs, tiles):
    found = described(shared_data, name)
    assert {port["name"]: port["direction"] for port in found["ports"]} == ports
    assert (found["macs"], len(found["weight_tiles"]), found["target"]) == (macs, tiles, "H13")
    assert found["compiler"][:3] == ["ANEC v1", "zin_ane_compiler v4.2.1", "-t h13"]
    assert found["procedures"][0]["name"] == "net" and found["procedures"][0]["tasks"] == 1
    assert found["procedures"][0]["task_bytes"] == 0x274
    json.dumps(found)


def by_table(data: bytes, mode: int = 0x0012000C) -> dict:
    """A shared ReLU with the registers that TGR lists for an M1 sigmoid: one lane reads, the engine passes its input by,
    its nonlinearity is a table."""
    words = bytearray(data)
    start = 0x4000
    for place, value in ((0x34, 0x81), (0xB4, 0x80), (0x244, mode)):
        struct.pack_into("<I", words, start + place, value)
    return describe(hwx.parse(bytes(words)))


def test_a_table_of_a_function_is_neither_weights_nor_multiply_adds(shared_data):
    data = (shared_data / "hwx" / "tinygrad-ops-relu-dc54cc.hwx").read_bytes()
    found = by_table(data)
    (task,) = found["tasks"]
    assert task["weight_lanes"] == 1
    assert (found["macs"], found["tables"]) == (0, 1)
    assert task["does"] == {"input": "fp16", "output": "fp16", "nonlinear": "by table"}


def test_a_convolution_that_ends_in_a_table_has_weights_and_multiply_adds(shared_data):
    found = by_table((shared_data / "hwx" / "tinygrad-ops-relu-dc54cc.hwx").read_bytes(), mode=0x00120000)
    assert (found["macs"], found["tables"]) == (77, 0)
    assert found["tasks"][0]["does"]["weights"] == "int8"


def test_bytes_that_are_no_task_are_counted(shared_data):
    for path in (shared_data / "hwx").iterdir():
        assert describe(hwx.parse(path.read_bytes()))["unread_task_bytes"] == 0
    assert describe(hwx.parse(stream_file(7)))["unread_task_bytes"] == 0
    unknown = bytearray(stream_file(7))
    struct.pack_into("<I", unknown, 8, 99)  # a generation that nobody described
    found = describe(hwx.parse(bytes(unknown)))
    assert found["tasks"] == [] and found["unread_task_bytes"] > 100


def test_address_slots_lead_to_the_ports(shared_data):
    found = described(shared_data, "sum")
    slots = found["procedures"][0]["address_slots"]
    addresses = {port["name"]: port["address"] for port in found["ports"]}
    assert [slots[4], slots[5], slots[6]] == [addresses["probs@output"], addresses["image2"], addresses["image"]]


def test_registers_keep_their_values_from_task_to_task_of_a_stream():
    found = describe(hwx.parse(stream_file(7)))
    assert [task["sizes"] for task in found["tasks"]] == [{"Win": 64, "Hin": 1}] * 2
    assert found["tasks"][0]["blocks"] == ["Common", "NE"]
