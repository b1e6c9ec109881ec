"""Every function that takes a path takes one as text, as a Path and as anything else that stands for one."""

from pathlib import Path

import numpy as np
import pytest
from inspect_samples import small_program

from torchane import mil
from torchane.inspect import e5, mlmodelc, mlpackage
from torchane.inspect.describe import Inspection
from torchane.inspect.recognize import Kind, kind_of, load_program
from torchane.mil.blobs import BlobFile, BlobWriter, resolve
from torchane.mil.files import read_whole
from torchane.mil.types import DType


class PathLike:
    """What the protocol of paths asks for, and nothing else."""

    def __init__(self, path):
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


@pytest.fixture
def files(tmp_path):
    mil.save(small_program(large=True), tmp_path / "m.mlmodelc")
    mlpackage.save(small_program(), tmp_path / "m.mlpackage")
    writer = BlobWriter()
    writer.add(np.ones(3, np.float16), DType.FP16)
    (tmp_path / "w.bin").write_bytes(writer.to_bytes())
    (tmp_path / "e.bundle" / "main").mkdir(parents=True)
    return tmp_path


CALLS = {
    "kind_of": ("m.mlpackage", lambda path: kind_of(path) is Kind.MLPACKAGE),
    "load_program": ("m.mlmodelc", lambda path: len(load_program(path).ops)),
    "load_program of a package": ("m.mlpackage", lambda path: len(load_program(path, with_weights=False).ops)),
    "Inspection": ("m.mlmodelc", lambda path: Inspection(path).to_dict(with_weights=True)["size_bytes"]),
    "Inspection of a weight file": ("w.bin", lambda path: len(Inspection(path).to_dict()["records"]) == 1),
    "on_chip": ("m.mlmodelc", lambda path: Inspection(path).on_chip("portable")["name"] == "portable"),
    "differences": ("m.mlmodelc", lambda path: Inspection(path).differences(path) == []),
    "mil.load": ("m.mlmodelc", lambda path: len(mil.load(path).ops)),
    "mil.save": ("new", lambda path: mil.save(small_program(), path).is_file()),
    "mlpackage.save": ("new.mlpackage", lambda path: mlpackage.save(small_program(), path).is_dir()),
    "mlpackage.load": ("m.mlpackage", lambda path: len(mlpackage.load(path).ops)),
    "mlpackage.read": ("m.mlpackage", lambda path: mlpackage.read(path).kind == "mlProgram"),
    "mlpackage.read_manifest": ("m.mlpackage", lambda path: mlpackage.read_manifest(path).root.name),
    "mlpackage.model_path": ("m.mlpackage", lambda path: mlpackage.model_path(path).is_file()),
    "mlmodelc.read_metadata": ("m.mlmodelc", lambda path: mlmodelc.read_metadata(path) == {}),
    "mlmodelc.summary": ("m.mlmodelc", lambda path: mlmodelc.summary(path) == {}),
    "mlmodelc.stages": ("m.mlmodelc", lambda path: mlmodelc.stages(path) == ()),
    "e5.is_bundle": ("e.bundle", lambda path: e5.is_bundle(path)),
    "e5.read_bundle": ("e.bundle", lambda path: e5.read_bundle(path).files == ()),
    "BlobFile.open": ("w.bin", lambda path: len(BlobFile.open(path)) == 1),
    "resolve": ("m.mlmodelc", lambda path: resolve(path, "weights/weight.bin").is_file()),
    "read_whole": ("w.bin", lambda path: len(read_whole(path, "it"))),
}


@pytest.mark.parametrize("form", [str, Path, PathLike])
@pytest.mark.parametrize("call", CALLS)
def test_a_path_may_have_any_form(files, call, form):
    name, run = CALLS[call]
    assert run(form(files / name))
