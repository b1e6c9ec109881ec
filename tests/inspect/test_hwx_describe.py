"""What is said of a .hwx."""

import json

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


def test_address_slots_lead_to_the_ports(shared_data):
    found = described(shared_data, "sum")
    slots = found["procedures"][0]["address_slots"]
    addresses = {port["name"]: port["address"] for port in found["ports"]}
    assert [slots[4], slots[5], slots[6]] == [addresses["probs@output"], addresses["image2"], addresses["image"]]


def test_registers_keep_their_values_from_task_to_task_of_a_stream():
    found = describe(hwx.parse(stream_file(7)))
    assert [task["sizes"] for task in found["tasks"]] == [{"Win": 64, "Hin": 1}] * 2
    assert found["tasks"][0]["blocks"] == ["Common", "NE"]
