"""Packages on disk: read, written, and read by coremltools."""

import json
import shutil

import coremltools
import numpy as np
import pytest
from coremltools.converters.mil.frontend.milproto.load import load as load_pymil
from inspect_samples import small_program

from torchane import mil
from torchane.errors import ParseError, TorchaneError
from torchane.inspect import mlpackage
from torchane.inspect.apart import constants_apart
from torchane.mil.blobs import BlobPathError
from torchane.mil.build import Builder
from torchane.mil.types import FP32

PACKAGES = (
    "dtln-aec-128-part1-fp32", "mobius-silero-vad-stft-v6.0.0", "mobius-silero-vad-unified-v6.0.0",
    "mobius-unified_int8", "mobius-unified_palette_8bit",
)  # fmt: skip


def linear() -> tuple:
    """A program with a weight, and its numbers in NumPy."""
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((8, 4)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    b = Builder()
    x = b.input("x", (2, 4), FP32)
    y = b.softmax(x=b.linear(x=x, weight=weight, bias=bias), axis=-1)
    return b.program(y), weight, bias


@pytest.mark.parametrize("name", PACKAGES)
def test_every_shared_package_reads_and_checks(shared_data, name):
    mil.check(mlpackage.load(shared_data / "mlpackage" / f"{name}.mlpackage"))


@pytest.mark.parametrize("name", PACKAGES)
def test_a_copy_does_what_the_original_does(shared_data, name, tmp_path):
    program = mlpackage.load(shared_data / "mlpackage" / f"{name}.mlpackage")
    copy = mlpackage.load(mlpackage.save(program, tmp_path / "copy.mlpackage"))
    assert mil.diff(program, copy) == ()
    assert (copy.version, copy.build_info, copy.main.opset) == (program.version, program.build_info, program.main.opset)


@pytest.mark.parametrize("name", PACKAGES[1:])
def test_coremltools_infers_the_types_of_our_copies(shared_data, name, tmp_path):
    program = mlpackage.load(shared_data / "mlpackage" / f"{name}.mlpackage")
    theirs = through_coremltools(mlpackage.save(program, tmp_path / "copy.mlpackage"))
    shapes = {var.name: tuple(var.shape) for var in theirs.functions["main"].outputs}
    assert shapes == {var.name: tuple(var.shape) for var in program.outputs}


def through_coremltools(path):
    """The package as coremltools' own intermediate language, which infers every type anew."""
    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    return load_pymil(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_ours_means_the_same_to_coremltools(tmp_path):
    program, weight, bias = linear()
    theirs = through_coremltools(mlpackage.save(program, tmp_path / "m.mlpackage", blob_threshold=0))
    function = theirs.functions["main"]
    ops = [op for op in function.operations if op.op_type != "const"]
    assert [op.op_type for op in ops] == ["linear", "softmax"]
    np.testing.assert_array_equal(ops[0].weight.val, weight)
    np.testing.assert_array_equal(ops[0].bias.val, bias)
    assert function.outputs[0].shape == (2, 8)


def test_our_numbers_come_back_to_the_bit(tmp_path):
    program, *_ = linear()
    x = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    copy = mlpackage.load(mlpackage.save(program, tmp_path / "m.mlpackage"))
    (before,), (after,) = (mil.evaluate(p, {"x": x}).values() for p in (program, copy))
    assert before.tobytes() == after.tobytes()


def test_equal_programs_give_equal_packages(tmp_path):
    files = []
    for name in ("a", "b"):
        folder = mlpackage.save(small_program(), tmp_path / f"{name}.mlpackage")
        files.append({str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()})
    assert files[0] == files[1]


def test_a_package_takes_the_place_of_one_and_of_nothing_else(tmp_path):
    path = mlpackage.save(small_program(), tmp_path / "m.mlpackage")
    mlpackage.save(small_program(large=True), path)
    assert mil.diff(mlpackage.load(path), small_program(large=True)) == ()
    (tmp_path / "notes").mkdir()
    with pytest.raises(TorchaneError, match="something else here"):
        mlpackage.save(small_program(), tmp_path / "notes")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.mlpackage", "notes"]


def changed(tmp_path, change) -> object:
    path = mlpackage.save(small_program(), tmp_path / "m.mlpackage")
    manifest = json.loads((path / "Manifest.json").read_text())
    change(manifest)
    (path / "Manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.mark.parametrize("target", ["../../outside", "/etc/passwd", "a/../../b", ""])
def test_a_manifest_leads_nowhere_outside_the_package(tmp_path, target):
    def change(manifest):
        manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = target

    with pytest.raises(BlobPathError):
        mlpackage.load(changed(tmp_path, change))


@pytest.mark.parametrize(("change", "reason"), [
    (lambda m: m.pop("rootModelIdentifier"), "none of the package's 1 items"),
    (lambda m: m.update(rootModelIdentifier="x"), "none of the package's 1 items"),
    (lambda m: m.pop("itemInfoEntries"), "no itemInfoEntries"),
    (lambda m: m.update(itemInfoEntries={"a": 3}), "not described by strings"),
])  # fmt: skip
def test_a_manifest_that_says_too_little_is_refused(tmp_path, change, reason):
    with pytest.raises(ParseError, match=reason):
        mlpackage.load(changed(tmp_path, change))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "3", "\x00", '{"a": ' + "9" * 10_000 + "}"])
def test_a_manifest_that_is_no_manifest_is_refused(tmp_path, text):
    path = mlpackage.save(small_program(), tmp_path / "m.mlpackage")
    (path / "Manifest.json").write_text(text)
    with pytest.raises(ParseError, match="manifest"):
        mlpackage.load(path)


def test_missing_files_are_named(tmp_path):
    path = mlpackage.save(small_program(large=True), tmp_path / "m.mlpackage", blob_threshold=0)
    shutil.rmtree(path / "Data")
    with pytest.raises(ParseError, match=r"model\.mlmodel: the model cannot be read"):
        mlpackage.load(path)
    with pytest.raises(ParseError, match="manifest cannot be read"):
        mlpackage.load(tmp_path)


def test_a_package_without_its_weights_can_be_read_without_them(tmp_path):
    program, *_ = linear()
    path = mlpackage.save(program, tmp_path / "m.mlpackage")
    assert len(mlpackage.load(path).ops) == len(constants_apart(program).ops)
    shutil.rmtree(path / "Data" / "com.apple.CoreML" / "weights")
    with pytest.raises(ParseError, match="weight file cannot be read"):
        mlpackage.load(path)
    assert len(mlpackage.load(path, with_weights=False).ops) == len(constants_apart(program).ops)
