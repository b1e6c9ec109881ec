"""What stands in a file's place and is none."""

import os

import pytest

from torchane.errors import ParseError
from torchane.inspect import mlpackage
from torchane.inspect.mlmodelc import read_metadata
from torchane.mil import load
from torchane.mil.blobs import BlobPathError, resolve
from torchane.mil.files import read_whole


def test_a_file_is_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"\0\r\n\xff")
    assert read_whole(tmp_path / "a", "it") == b"\0\r\n\xff"


@pytest.mark.parametrize(("make", "said"), [
    (os.mkfifo, "the model cannot be read: it is no regular file"),
    (os.mkdir, "the model cannot be read: "),
    (lambda path: os.symlink("/dev/zero", path), "no regular file"),
    (lambda path: os.symlink(path, path), "symbolic links"),
    (lambda path: None, "No such file"),
])  # fmt: skip
def test_what_is_no_file_is_refused_at_once(tmp_path, make, said):
    make(tmp_path / "x")
    with pytest.raises(ParseError, match=said):
        read_whole(tmp_path / "x", "the model")


def test_a_file_that_is_far_too_large_is_not_read(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ParseError, match="the model has 1,099,511,627,776 bytes; the most that is read is 2,147,483,648"):
        read_whole(tmp_path / "x", "the model")


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(ParseError, match="null"):
        read_whole(tmp_path / "a\0b", "the model")


def test_no_reader_waits_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "model.mil")
    os.mkfifo(tmp_path / "metadata.json")
    os.mkfifo(tmp_path / "Manifest.json")
    for read in (load, read_metadata, mlpackage.load):
        with pytest.raises(ParseError, match="no regular file"):
            read(tmp_path)


def test_links_that_lead_to_each_other_lead_out(tmp_path):
    os.symlink("b", tmp_path / "a")
    os.symlink("a", tmp_path / "b")
    with pytest.raises(BlobPathError, match="through a link"):
        resolve(tmp_path, "a")
