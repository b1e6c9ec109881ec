"""Weight files: coremltools' own library reads ours and we read its, bit for bit; damage is named by its byte."""

import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchane.errors import ParseError, UsageError
from torchane.mil.blobs import CODES, BlobError, BlobFile, BlobPathError, BlobWriter, pack, resolve, unpack
from torchane.mil.types import DType

# The names of coremltools' methods; it has none for bf16 and the two fp8 types.
APPLES = {
    DType.FP16: "fp16", DType.FP32: "float", DType.INT8: "int8", DType.UINT8: "uint8", DType.INT16: "int16",
    DType.UINT16: "uint16", DType.INT32: "int32", DType.UINT32: "uint32", DType.INT4: "int4", DType.UINT1: "uint1",
    DType.UINT2: "uint2", DType.UINT3: "uint3", DType.UINT4: "uint4", DType.UINT6: "uint6",
}  # fmt: skip


def sample(dtype: DType, size: int, seed: int = 0) -> np.ndarray:
    """Every bit pattern of the type is as likely as any other."""
    rng = np.random.default_rng(seed)
    if dtype is DType.INT4:
        return rng.integers(-8, 8, size, dtype=np.int8)
    if dtype.bits < 8:
        return rng.integers(0, 1 << dtype.bits, size, dtype=np.uint8)
    return np.frombuffer(rng.bytes(size * dtype.bits // 8), dtype.numpy).copy()


@pytest.fixture(scope="module")
def apple():
    """coremltools' reader and writer. The modules of coremltools warn on import, about torch and about macOS."""
    pytest.importorskip("coremltools", reason="coremltools is not installed", exc_type=ImportError)
    from coremltools import libmilstoragepython  # (the import above must have succeeded)

    return libmilstoragepython


@pytest.mark.parametrize("dtype", CODES, ids=repr)
@pytest.mark.parametrize("size", [1, 7, 8, 64, 1001])
def test_elements_come_back(dtype, size):
    array = sample(dtype, size)
    writer = BlobWriter()
    offset = writer.add(array, dtype)
    found, elements = BlobFile.from_bytes(writer.to_bytes()).read(offset)
    assert found is dtype
    assert elements.dtype == dtype.numpy
    assert elements.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", APPLES, ids=repr)
def test_coremltools_reads_ours(dtype, apple, tmp_path):
    arrays = [sample(dtype, size, size) for size in (1, 5, 8, 63, 64, 65, 1000)]
    writer = BlobWriter()
    offsets = [writer.add(array, dtype) for array in arrays]
    path = tmp_path / "weight.bin"
    path.write_bytes(writer.to_bytes())
    reader = apple._BlobStorageReader(str(path))
    for array, offset in zip(arrays, offsets):
        theirs = getattr(reader, f"read_{APPLES[dtype]}_data")(offset)
        assert np.asarray(theirs).tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", APPLES, ids=repr)
def test_we_read_coremltools(dtype, apple, tmp_path):
    arrays = [sample(dtype, size, size) for size in (1, 5, 8, 63, 64, 65, 1000)]
    path = str(tmp_path / "weight.bin")
    writer = apple._BlobStorageWriter(path)
    write = getattr(writer, f"write_{APPLES[dtype]}_data")
    offsets = [write(array.view(np.uint16) if dtype is DType.FP16 else array) for array in arrays]
    del writer, write  # closes the file
    file = BlobFile.open(path)
    assert [record.offset for record in file.records()] == offsets
    for array, offset in zip(arrays, offsets):
        found, elements = file.read(offset)
        assert found is dtype
        assert elements.tobytes() == array.tobytes()


def test_our_file_is_coremltools_file_byte_for_byte(apple, tmp_path):
    path = tmp_path / "theirs.bin"
    theirs = apple._BlobStorageWriter(str(path))
    ours = BlobWriter()
    for number, (dtype, word) in enumerate(APPLES.items()):
        array = sample(dtype, 13 * number + 1, number)
        offset = getattr(theirs, f"write_{word}_data")(array.view(np.uint16) if dtype is DType.FP16 else array)
        assert ours.add(array, dtype) == offset
    del theirs
    assert ours.to_bytes() == path.read_bytes()


def test_the_first_record_is_at_64_and_its_data_at_128():
    writer = BlobWriter()
    assert writer.add(np.arange(3, dtype=np.int32), DType.INT32) == 64
    data = writer.to_bytes()
    assert struct.unpack_from("<II", data) == (1, 2)
    assert struct.unpack_from("<IIQQQ", data, 64) == (0xDEADBEEF, 14, 12, 128, 0)
    assert data[128:] == np.arange(3, dtype="<i4").tobytes()


def test_records_begin_at_multiples_of_64():
    writer = BlobWriter()
    offsets = [writer.add(np.full(size, size, np.uint8), DType.UINT8) for size in range(1, 200, 7)]
    assert all(offset % 64 == 0 for offset in offsets)
    assert len(set(offsets)) == len(offsets)


def test_equal_constants_are_stored_once():
    writer = BlobWriter()
    first = writer.add(np.ones(100, np.float16), DType.FP16)
    assert writer.add(np.ones((10, 10), np.float16), DType.FP16) == first
    assert writer.add(np.ones(100, np.float32), DType.FP32) != first
    assert len(writer) == 2


def test_sub_byte_constants_that_differ_in_length_only_are_two():
    writer = BlobWriter()
    five, six = np.zeros(5, np.uint8), np.zeros(6, np.uint8)
    assert writer.add(five, DType.UINT1) != writer.add(six, DType.UINT1)


@pytest.mark.parametrize(("dtype", "values", "packed"), [
    (DType.INT4, [1, -1, 7], "f107"),           # low nibble first
    (DType.UINT1, [1, 0, 0, 0, 0, 0, 0, 0, 1], "0101"),
    (DType.UINT2, [1, 2, 3, 0], "39"),
    (DType.UINT3, [7, 0, 1], "4700"),           # bit 6 of byte 0 is the third's lowest
    (DType.UINT6, [63, 1, 2], "7f2000"),
])  # fmt: skip
def test_packing_starts_at_the_lowest_bit(dtype, values, packed):
    assert pack(np.array(values, dtype.numpy), dtype).hex() == packed


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([d for d in CODES if d.bits < 8]), st.integers(0, 200), st.integers(0, 9))
def test_unpack_undoes_pack(dtype, size, seed):
    array = sample(dtype, size, seed)
    data = np.frombuffer(pack(array, dtype), np.uint8)
    assert len(data) == (size * dtype.bits + 7) // 8
    assert unpack(data, size, dtype).tolist() == array.tolist()


def test_values_beyond_the_bits_are_refused():
    with pytest.raises(UsageError, match="int4 holds -8 to 7"):
        BlobWriter().add(np.array([8], np.int8), DType.INT4)


def test_types_without_a_code_are_refused():
    with pytest.raises(UsageError, match="cannot hold bool"):
        BlobWriter().add(np.array([True]), DType.BOOL)


def test_the_array_must_be_of_the_dtype():
    with pytest.raises(UsageError, match="float16, not of float32"):
        BlobWriter().add(np.zeros(2, np.float32), DType.FP16)


def test_an_open_file_is_mapped_and_not_copied(tmp_path):
    writer = BlobWriter()
    offset = writer.add(np.arange(1000, dtype=np.float16), DType.FP16)
    path = tmp_path / "weight.bin"
    path.write_bytes(writer.to_bytes())
    file = BlobFile.open(path)
    _, elements = file.read(offset)
    _, again = file.read(offset)
    assert np.shares_memory(elements, again)
    assert not elements.flags.owndata
    assert not elements.flags.writeable
    path.unlink()  # the mapping outlives the name
    assert elements[999] == 999


def test_data_of_one_code_is_read_as_what_the_program_declares():
    writer = BlobWriter()
    offset = writer.add(np.array([0x1FF], np.uint16).view(np.float16), DType.FP16)
    assert BlobFile.from_bytes(writer.to_bytes()).read_as(offset, DType.UINT8).tolist() == [0xFF, 1]


def damaged(change) -> bytes:
    writer = BlobWriter()
    writer.add(np.arange(20, dtype=np.float16), DType.FP16)
    data = bytearray(writer.to_bytes())
    change(data)
    return bytes(data)


def put(place: int, code: str, value: int):
    return lambda data: struct.pack_into(code, data, place, value)


def test_whole_bytes_have_no_padding_whatever_the_field_says():
    file = BlobFile.from_bytes(damaged(put(88, "<Q", 5104411984)))  # as early writers of Apple's left it
    assert file.records()[0].padding_bits == 0
    assert file.read(64)[1].tolist() == list(range(20))


@pytest.mark.parametrize(("change", "byte", "reason"), [
    (put(4, "<I", 3), 4, "not a weight file of version 2"),
    (put(64, "<I", 1), 64, "no record begins here"),
    (put(68, "<I", 99), 68, "element type has the code 99"),
    (put(72, "<Q", 1 << 60), 72, "leaves the file of 168 bytes"),
    (put(80, "<Q", 1 << 63), 72, "leaves the file of 168 bytes"),
    (put(80, "<Q", 0), 72, "leaves the file"),
    (put(72, "<Q", 39), 88, "no whole number of fp16"),
    (lambda data: data.__delitem__(slice(100, None)), 64, "no record can be here"),
])  # fmt: skip
def test_damage_is_named_by_its_byte(change, byte, reason):
    with pytest.raises(BlobError, match=reason) as caught:
        BlobFile.from_bytes(damaged(change), "weight.bin").read(64)
    assert caught.value.offset == byte
    assert f"weight.bin: byte {byte}" in str(caught.value)


@pytest.mark.parametrize("offset", [0, 32, 63, 128, 1 << 62])
def test_an_offset_without_a_record_is_refused(offset):
    with pytest.raises(BlobError):
        BlobFile.from_bytes(damaged(lambda data: None)).read(offset)


def test_a_header_that_announces_too_many_records_is_refused():
    with pytest.raises(BlobError):
        BlobFile.from_bytes(damaged(put(0, "<I", 0xFFFFFFFF))).records()


def test_a_record_whose_data_lies_before_it_is_refused():
    with pytest.raises(BlobError, match="lies before its record's end"):
        BlobFile.from_bytes(damaged(put(80, "<Q", 64))).records()


def laid_out(*records: tuple[int, int, bytes], counted: int | None = None, size: int = 0) -> BlobFile:
    """A file of records by hand: where each lies, where its data lies, and the data, of int8. Gaps are zeros."""
    end = max([size, *(max(place + 64, start + len(data)) for place, start, data in records)])
    file = bytearray(end)
    struct.pack_into("<II", file, 0, len(records) if counted is None else counted, 2)
    for place, start, data in records:
        struct.pack_into("<IIQQQ", file, place, 0xDEADBEEF, 4, len(data), start, 0)
        file[start : start + len(data)] = data
    return BlobFile.from_bytes(bytes(file))


_LAYOUTS = {
    "without padding": ((64, 128, b"\1" * 5), (133, 197, b"\0" * 3), (200, 264, b"\2" * 70)),
    "padding to 16 bytes": ((64, 128, b"\1" * 5), (144, 208, b"\2" * 5)),
    "padding to a page": ((64, 128, b"\1" * 5), (4096, 4160, b"\2" * 5)),
    "padding of 3 MB": ((64, 128, b"\1" * 5), (3 << 20, (3 << 20) + 64, b"\2" * 5)),
    "all records, then all data": ((64, 256, b"\1" * 64), (128, 320, b"\2" * 64), (192, 384, b"\3" * 64)),
    "data on a page of its own": ((64, 4096, b"\0\1" * 5), (128, 8192, b"\2" * 5), (8256, 8320, b"\3")),
    "data that looks like a record": ((64, 128, struct.pack("<IIQQQ", 0xDEADBEEF, 4, 0, 128, 0)), (192, 256, b"\1")),
    "two records of the same data": ((64, 192, b"\1" * 5), (128, 192, b"\1" * 5)),
}


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_records_are_found_wherever_an_emitter_puts_them(layout):
    file = laid_out(*_LAYOUTS[layout])
    assert [(r.offset, r.start, r.size_bytes) for r in file.records()] == [(p, s, len(d)) for p, s, d in _LAYOUTS[layout]]
    assert file.survey().faults == ()
    for place, _, data in _LAYOUTS[layout]:
        assert file.read(place)[1].tobytes() == data


def test_records_beyond_those_that_the_header_counts_are_found():
    file = laid_out(*_LAYOUTS["without padding"], counted=1)
    assert len(file.records()) == 3
    assert file.survey().counted == 1


@pytest.mark.parametrize("dtype", [DType.FP16, DType.FP32, DType.INT32], ids=repr)
def test_data_that_does_not_lie_as_its_type_asks_is_read(dtype):
    array = sample(dtype, 10)
    head = struct.pack("<II56x", 2, 2) + struct.pack("<IIQQQ32x", 0xDEADBEEF, 4, 3, 128, 0) + b"abc"
    data = head + struct.pack("<IIQQQ32x", 0xDEADBEEF, CODES[dtype], array.nbytes, 195, 0) + array.tobytes()
    found = BlobFile.from_bytes(data).read_as(131, dtype)
    assert found.flags.aligned and not found.flags.writeable
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize(("change", "said"), [
    (lambda data: data + bytes(100), []),
    (lambda data: data + b"more", ["byte 168: the last 4 bytes belong to no record"]),
    (lambda data: data[:-1], ["byte 72: the data, 40 bytes from byte 128 on, leaves the file of 167 bytes",
                              "byte 0: the header counts 1 records and the file holds 0"]),
    (lambda data: struct.pack("<I", 3) + data[4:], ["byte 0: the header counts 3 records and the file holds 1"]),
    (lambda data: data + b"junk" + data[64:], ["byte 168: 4 bytes belong to no record",
                                               "byte 188: the data at byte 128 lies before its record's end"]),
    (lambda data: data + data[64:], ["byte 184: the data at byte 128 lies before its record's end"]),
])  # fmt: skip
def test_a_survey_says_what_is_not_as_it_should_be(change, said):
    file = BlobFile.from_bytes(change(damaged(lambda data: None)), "w.bin")
    found = [str(fault) for fault in file.survey().faults]
    assert len(found) == len(said)
    for fault, wanted in zip(found, said):
        assert fault.startswith(f"w.bin: {wanted}")


def test_a_record_behind_a_broken_one_is_found():
    data = damaged(lambda data: None)
    second = struct.pack("<IIQQQ32x", 0xDEADBEEF, 4, 2, 168 + 64, 0) + b"ab"
    survey = BlobFile.from_bytes(put_code(data, 99) + second).survey()
    assert [record.offset for record in survey.records] == [168]
    assert ["element type has the code 99" in str(fault) for fault in survey.faults] == [True]


def put_code(data: bytes, code: int) -> bytes:
    return data[:68] + struct.pack("<I", code) + data[72:]


def test_a_file_of_nothing_but_broken_records_ends_soon():
    data = struct.pack("<II56x", 1, 2) + struct.pack("<II", 0xDEADBEEF, 99) * 100_000
    survey = BlobFile.from_bytes(data).survey()
    assert len(survey.faults) < 5


@pytest.mark.parametrize(("dtype", "size"), [(DType.UINT3, 10), (DType.UINT6, 5), (DType.INT4, 3), (DType.UINT1, 9)], ids=repr)
def test_sub_byte_data_whose_padding_field_was_left_empty_is_read(dtype, size):
    writer = BlobWriter()
    array = sample(dtype, size)
    writer.add(array, dtype)
    data = bytearray(writer.to_bytes())
    struct.pack_into("<Q", data, 88, 0)
    assert BlobFile.from_bytes(bytes(data)).read_as(64, dtype)[:size].tolist() == array.tolist()


def test_a_pointer_of_git_lfs_in_its_place_is_called_one(tmp_path):
    path = tmp_path / "weight.bin"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 882304\n")
    with pytest.raises(ParseError, match=r"weight\.bin: this is a Git LFS pointer: the file of 882,304 bytes"):
        BlobFile.open(path)


@pytest.mark.parametrize("size", [0, 10])
def test_a_short_file_is_refused(size, tmp_path):
    path = tmp_path / "weight.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(BlobError):
        BlobFile.open(path)


def test_a_folder_or_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ParseError, match="no regular file"):
            BlobFile.open(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ParseError, match="cannot be read: No such file"):
        BlobFile.open(tmp_path / "weight.bin")


@pytest.mark.parametrize(("name", "reason"), [
    ("@model_path/../secret.bin", r"'\.\.'"),
    ("weights/../../secret.bin", r"'\.\.'"),
    ("@model_path/weights/..", r"'\.\.'"),
    ("@model_path/a\\..\\b", r"'\.\.'"),
    ("/etc/passwd", "absolute"),
    ("~/secret.bin", "absolute"),
    ("C:/secret.bin", "absolute"),
    ("@model_path/", "no file"),
    ("", "no file"),
    ("a\0b", "no file"),
    ("@model_path/link.bin", "link"),
    ("@model_path/folder/secret.bin", "link"),
])  # fmt: skip
def test_a_path_that_leaves_the_folder_is_refused(name, reason, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"x")
    os.symlink(tmp_path / "secret.bin", folder / "link.bin")
    os.symlink(tmp_path, folder / "folder")
    with pytest.raises(BlobPathError, match=reason):
        resolve(folder, name)


@pytest.mark.parametrize(
    "name", ["@model_path/weights/weight.bin", "weights/weight.bin", "@model_path//weights/weight.bin"]
)
def test_a_path_within_the_folder_is_found(name, tmp_path):
    assert resolve(tmp_path, name) == tmp_path / "weights" / "weight.bin"


def test_a_link_within_the_folder_may_be_followed(tmp_path):
    (tmp_path / "real.bin").write_bytes(b"x")
    os.symlink("real.bin", tmp_path / "alias.bin")
    assert resolve(tmp_path, "@model_path/alias.bin") == tmp_path / "alias.bin"


def test_real_weight_files_hold_what_their_header_says(shared_data):
    files = sorted(shared_data.glob("mil_compiled/*/weights/weight.bin"))
    assert files
    for path in files:
        file = BlobFile.open(path)
        assert len(file.records()) == len(file) > 0
