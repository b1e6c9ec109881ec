"""What a file is, told by its content."""

import os

import numpy as np
import pytest
from inspect_samples import e5_descriptor, h13_file, model_file, small_program

from torchane import mil
from torchane.errors import ParseError
from torchane.inspect import mlpackage
from torchane.inspect.recognize import Kind, kind_of, load_program
from torchane.mil.blobs import BlobWriter
from torchane.mil.types import DType


@pytest.fixture
def kinds(tmp_path):
    """A file of every kind, under a name that tells nothing where that may be."""
    files = {Kind.MLMODEL: model_file(), Kind.HWX: h13_file(), Kind.BLOBS: BlobWriter().to_bytes()}
    files[Kind.MIL] = b"  // a comment\n" + mil.to_text(small_program()).encode()
    for kind, data in files.items():
        (tmp_path / kind.name).write_bytes(data)
    (tmp_path / "a.e5").write_bytes(e5_descriptor())
    (tmp_path / "b.bundle" / "main").mkdir(parents=True)
    for stage in ("model0", "model1"):
        mil.save(small_program(), tmp_path / "e.mlmodelc" / stage)
    (tmp_path / "f.mlmodelc").mkdir()
    (tmp_path / "f.mlmodelc" / "coremldata.bin").write_bytes(b"unknown")
    return {
        **{kind: tmp_path / kind.name for kind in files},
        Kind.E5_DESCRIPTOR: tmp_path / "a.e5",
        Kind.E5: tmp_path / "b.bundle",
        Kind.MLMODELC: mil.save(small_program(), tmp_path / "c.mlmodelc").parent,
        Kind.PIPELINE: tmp_path / "e.mlmodelc",
        Kind.COMPILED: tmp_path / "f.mlmodelc",
        Kind.MLPACKAGE: mlpackage.save(small_program(), tmp_path / "d"),
    }


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_is_recognised(kinds, kind):
    assert kind_of(kinds[kind]) is kind


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.holds_program])
def test_programs_are_loaded_whatever_holds_them(kinds, kind):
    assert mil.diff(small_program(), load_program(kinds[kind])) == ()
    assert len(load_program(kinds[kind], with_weights=False).outputs) == 1


@pytest.mark.parametrize("kind", [kind for kind in Kind if not (kind.holds_program or kind is Kind.PIPELINE)])
def test_other_kinds_hold_no_program(kinds, kind):
    with pytest.raises(ParseError, match="holds no MIL program"):
        load_program(kinds[kind])


def test_a_weight_file_whose_header_was_not_cleared_is_one(tmp_path):
    writer = BlobWriter()
    writer.add(np.ones(3, np.float16), DType.FP16)
    data = writer.to_bytes()
    (tmp_path / "x").write_bytes(data[:8] + b"\xa5" * 56 + data[64:])
    assert kind_of(tmp_path / "x") is Kind.BLOBS


@pytest.mark.parametrize("data", [b"GIF89a", b"\x80\x04\x95pickle", bytes(100)])
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ParseError, match="none of the known kinds"):
        kind_of(tmp_path / "x")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234567\n"


@pytest.mark.parametrize("name", ["model.mil", "model.mlmodel", "weight.bin", "model.hwx", "a.e5", "x"])
def test_a_pointer_of_git_lfs_is_called_one_whatever_it_stands_for(tmp_path, name):
    (tmp_path / name).write_bytes(LFS)
    with pytest.raises(ParseError, match=r"a Git LFS pointer: the file of 1,234,567 bytes .* Run git lfs pull"):
        kind_of(tmp_path / name)
    with pytest.raises(ParseError, match="a Git LFS pointer"):
        mil.load(tmp_path / name)


@pytest.mark.parametrize("within", ["Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"])
def test_a_package_of_pointers_says_so(tmp_path, within):
    path = mlpackage.save(small_program(large=True), tmp_path / "m.mlpackage")
    (path / within).write_bytes(LFS)
    with pytest.raises(ParseError, match=f"{within.split('/')[-1]}: this is a Git LFS pointer"):
        load_program(path)


def test_a_pointer_of_git_annex_is_called_one(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"/annex/objects/SHA256E-s882304--0123.bin\n")
    with pytest.raises(ParseError, match="git-annex pointer"):
        kind_of(tmp_path / "w.bin")


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("pipe", "neither a file nor a folder"), ("missing", "cannot be read")):
        with pytest.raises(ParseError, match=reason):
            kind_of(tmp_path / name)
    with pytest.raises(ParseError, match=r"neither Manifest\.json"):
        kind_of(tmp_path)


@pytest.mark.parametrize("name", ["mil_compiled", "mlpackage", "mil_generated", "hwx"])
def test_every_shared_file_is_recognised(shared_data, name):
    wanted = {"mil_generated": {Kind.MIL}, "hwx": {Kind.HWX}, "mlpackage": {Kind.MLPACKAGE, Kind.MLMODEL},
              "mil_compiled": {Kind.MIL, Kind.MLMODELC}}[name]  # fmt: skip
    assert {kind_of(path) for path in (shared_data / name).iterdir()} == wanted


def test_a_pipeline_is_refused_with_the_programs_that_it_holds(kinds):
    with pytest.raises(ParseError, match=r"several programs.*model0.*model1"):
        load_program(kinds[Kind.PIPELINE])


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(ParseError, match="the file is empty"):
        kind_of(tmp_path / "x")


def test_a_folder_of_models_names_some_of_them(tmp_path):
    for place in range(7):
        mil.save(small_program(), tmp_path / f"m{place}.mlmodelc")
    with pytest.raises(ParseError, match=r"Of those in it: m0\.mlmodelc, .*m4\.mlmodelc, \.\.\.\."):
        kind_of(tmp_path)


def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", refused)
    with pytest.raises(ParseError, match="it cannot be read: Permission denied"):
        kind_of(tmp_path)
