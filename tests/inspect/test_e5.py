"""E5 descriptors and bundles, made here: no public sample could be had."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inspect_samples import e5_descriptor, h13_file

from torchane.errors import ParseError
from torchane.inspect import e5
from torchane.inspect.errors import FormatError

ANALYTICS = """program(1.3)
{
    func main<ios18>(tensor<fp16, [2]> x) {
        tensor<fp16, [2]> a = relu(x = x)[name = string("a"), SelectedBackend = string("ane")];
        tensor<fp16, [2]> y = exp(x = a)[name = string("y"), SelectedBackend = string("ane")];
        tensor<fp16, [2]> z = sin(x = y)[name = string("z"), SelectedBackend = string("cpu")];
    } -> (z);
}
"""


def test_a_descriptor_is_read():
    found = e5.parse_descriptor(e5_descriptor())
    assert found.symbol_names == ("main", "main__arg_frame")
    assert found.build_info == (("built-for-profiling", "0"),)
    assert found.sections == (("cast__op_attrs", 3),)
    assert (found.format_version, found.unknown) == (4, ())


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_value_or_an_error_with_its_byte(data):
    try:
        e5.parse_descriptor(data)
    except FormatError as error:
        assert 0 <= error.offset <= len(data)


@pytest.mark.parametrize("size", [0, 3, 4, 20, 60])
def test_a_descriptor_that_is_cut_off_is_refused(size):
    with pytest.raises(FormatError):
        e5.parse_descriptor(e5_descriptor()[:size])


def test_offsets_that_lead_to_one_long_text_over_and_over_are_refused():
    count, size = 50_000, 200_000
    names = 32
    text = names + 4 + 4 * count
    head = struct.pack("<I", 20) + struct.pack("<HHHHHH", 8, 8, 4, 0, 0, 0) + bytes(4)
    table = struct.pack("<iI", 20 - 4, names - 24) + bytes(4)
    offsets = b"".join(struct.pack("<I", text - (names + 4 + 4 * index)) for index in range(count))
    data = head + table + struct.pack("<I", count) + offsets + struct.pack("<I", size) + b"x" * size
    with pytest.raises(FormatError, match="over and over"):
        e5.parse_descriptor(data)


@pytest.fixture
def bundle(tmp_path):
    target = tmp_path / "ab12.bundle" / "H16G.bundle"
    (target / "main" / "main_ane").mkdir(parents=True)
    (target / "ab12.e5").write_bytes(e5_descriptor())
    (target / "analytics.mil").write_text(ANALYTICS)
    (target / "main" / "main_ane" / "model.hwx").write_bytes(h13_file())
    (target / "model.anehash").write_bytes(bytes(32))
    return tmp_path / "ab12.bundle"


def test_a_bundle_is_listed(bundle):
    assert e5.is_bundle(bundle) and e5.is_bundle(bundle / "H16G.bundle")
    found = e5.read_bundle(bundle)
    assert {file.path.rpartition("/")[2]: file.what for file in found.files} == {
        "ab12.e5": "descriptor", "analytics.mil": "placement of every op", "model.hwx": "engine program",
        "model.anehash": "hash of the program",
    }  # fmt: skip
    assert found.backends == {"ane": 2, "cpu": 1}
    assert found.descriptors["H16G.bundle/ab12.e5"].format_version == 4
    assert found.faults == ()


@pytest.mark.parametrize(("spelled", "estimated"), [
    ("fp32(0.25)", {"ane": 0.5}), ("fp64(0.25)", {"ane": 0.5}), ('string("0.25")', {}), ("fp32(nan)", {}), ("int32(1)", {"ane": 2.0}),
])  # fmt: skip
def test_estimates_are_summed_by_backend(bundle, spelled, estimated):
    op = f'relu(x = x)[SelectedBackend = string("ane"), EstimatedRuntime = {spelled}]'
    text = f'func main(fp16 x) {{ fp16 a = {op}; fp16 b = {op}; fp16 c = sin(x = b)[SelectedBackend = string("cpu")]; }} -> (c);'
    (bundle / "H16G.bundle" / "analytics.mil").write_text(text)
    found = e5.read_bundle(bundle)
    assert (found.backends, found.estimated_ms, found.faults) == ({"ane": 2, "cpu": 1}, estimated, ())


def test_damaged_files_of_a_bundle_are_named(bundle):
    (bundle / "H16G.bundle" / "ab12.e5").write_bytes(b"\1\2\3")
    (bundle / "H16G.bundle" / "analytics.mil").write_text("func (")
    faults = e5.read_bundle(bundle).faults
    assert len(faults) == 2 and any("ab12.e5: byte 0" in fault for fault in faults)


def test_a_folder_of_ten_thousand_files_is_no_bundle(bundle, monkeypatch):
    monkeypatch.setattr(e5, "_MOST_FILES", 3)
    with pytest.raises(ParseError, match="more than 3 files"):
        e5.read_bundle(bundle)


def test_other_folders_are_no_bundles(tmp_path):
    assert not e5.is_bundle(tmp_path) and not e5.is_bundle(tmp_path / "missing")


def test_what_is_no_file_is_named_and_not_read(tmp_path):
    (tmp_path / "main").mkdir()
    (tmp_path / "gone.e5").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.e5")
    found = e5.read_bundle(tmp_path)
    assert [fault.split(":")[0] for fault in found.faults] == ["gone.e5", "pipe.e5"]
    assert found.files == ()
