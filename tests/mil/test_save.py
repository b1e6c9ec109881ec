"""Programs on disk and in the hands of a device: text and weights that belong together."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from torchane import mil
from torchane.errors import CompileError, ParseError, TorchaneError, UsageError
from torchane.mil.blobs import BlobFile, BlobPathError
from torchane.mil.build import Builder
from torchane.mil.constants import load_blobs
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Blob, Function, Literal, Op, Program, Var, literal
from torchane.mil.kinds import KINDS, kind_of
from torchane.mil.save import BLOB_THRESHOLD, TAG, WEIGHT_PATH, emit, load, save
from torchane.mil.text import APPLE, parse, to_text
from torchane.mil.types import BOOL, FP16, INT32, DType, TensorType


def const(name: str, array: np.ndarray, dtype: DType) -> Op:
    type_ = TensorType(dtype, array.shape)
    return Op(kind_of("const"), {}, (Var(name, type_),), {"name": mil_name(name), "val": Literal(type_, array)})


def mil_name(name: str) -> Literal:
    return Literal(TensorType(DType.STRING), name)


def program(*ops: Op) -> Program:
    return Program((Function("main", (), ops, tuple(op.outputs[0] for op in ops)),))


WEIGHTS = np.arange(100, dtype=np.float16).reshape(10, 10)


def test_large_constants_go_to_the_weight_file():
    text, files = emit(program(const("w", WEIGHTS, FP16)))
    assert "BLOBFILE" in text
    assert list(files) == [WEIGHT_PATH]
    (op,) = parse(text).ops
    assert op.attrs["val"].value == Blob(WEIGHT_PATH, 64)
    assert BlobFile.from_bytes(files[WEIGHT_PATH]).read(64)[1].tolist() == WEIGHTS.reshape(-1).tolist()


def test_small_constants_stay_in_the_text():
    text, files = emit(program(const("w", WEIGHTS[:1, :4], FP16)))
    assert "[[0.0, 1.0, 2.0, 3.0]]" in text
    assert files == {}


@pytest.mark.parametrize(("threshold", "moved"), [(199, True), (200, False)])
def test_the_threshold_is_in_bytes(threshold, moved):
    _, files = emit(program(const("w", WEIGHTS, FP16)), blob_threshold=threshold)
    assert bool(files) == moved


def test_types_that_no_file_holds_stay_in_the_text():
    _, files = emit(program(const("w", np.ones(1000, np.bool_), BOOL)))
    assert files == {}


def test_large_arguments_go_to_the_weight_file_too():
    b = Builder()
    x, ones = b.input("x", (100,)), np.ones(100, np.float16)
    before = b.program(b.concat(values=(b.add(x=x, y=ones), literal(2 * ones)), axis=0))
    text, files = emit(before)
    assert text.count("BLOBFILE") == 2
    assert load_blobs(parse(text), lambda path: BlobFile.from_bytes(files[path])) == before


def test_small_arguments_stay_in_the_text():
    b = Builder()
    text, files = emit(b.program(b.add(x=b.input("x", (32,)), y=np.ones(32, np.float16))))
    assert files == {}
    assert "BLOBFILE" not in text


def _packed(dtype: DType, *shape: int) -> Literal:
    """Every pattern of a type, over and over."""
    low = -(1 << (dtype.bits - 1)) if dtype.mil_name.startswith("int") else 0
    numbers = np.arange(np.prod(shape)).reshape(shape) % (1 << min(dtype.bits, 8)) + low
    return Literal(TensorType(dtype, shape), numbers.astype(dtype.numpy))


_HALF = np.ones((64, 1), np.float16)
_MASK = _packed(DType.UINT1, 64, 64)
_NONZERO = (64 * 64 // 2,)
_COMPRESSED: dict[str, list[dict]] = {
    "constexpr_affine_dequantize": [
        {"quantized_data": _packed(dtype, 64, 64), "zero_point": literal(np.zeros(64, dtype.numpy)),
         "scale": np.ones(64, np.float16), "axis": 0} for dtype in (DType.INT8, DType.UINT8)
    ],
    "constexpr_cast": [{"source_val": np.ones((64, 64), np.float16), "output_dtype": "fp32"}],
    "constexpr_lut_to_dense": [
        {"indices": _packed(dtype, 64, 64), "lut": np.ones((64, 1, 1 << dtype.bits, 1), np.float16)}
        for dtype in (DType.UINT1, DType.UINT2, DType.UINT3, DType.UINT4, DType.UINT6, DType.UINT8)
    ] + [{"indices": _packed(DType.UINT8, 64 * 64 // 2), "lut": np.ones(16, np.float16),
          "shape": literal(np.array([64, 64], np.uint32))}],
    "constexpr_sparse_to_dense": [{"nonzero_data": np.ones(_NONZERO, np.float16), "mask": _MASK}],
    "constexpr_blockwise_shift_scale": [
        {"data": _packed(dtype, 64, 64), "scale": _HALF, "offset": _packed(dtype, 64, 1)}
        for dtype in (DType.INT4, DType.UINT4, DType.INT8, DType.UINT8)
    ],
    "constexpr_lut_to_sparse": [{"indices_mask": _MASK, "indices_nonzero_data": _packed(DType.UINT4, *_NONZERO),
                                 "lut": np.ones((1, 1, 16, 1), np.float16)}],
    "constexpr_sparse_blockwise_shift_scale": [
        {"data_mask": _MASK, "nonzero_data": _packed(DType.INT4, *_NONZERO), "scale": _HALF}
    ],
}  # fmt: skip


def test_every_compressed_form_is_among_the_cases():
    assert sorted(_COMPRESSED) == sorted(name for name in KINDS if name.startswith("constexpr_"))


@pytest.mark.parametrize(("kind", "args"), [(kind, args) for kind, forms in _COMPRESSED.items() for args in forms])
def test_what_compressed_constants_are_made_of_lies_in_the_weight_file(kind, args, tmp_path):
    b = Builder()
    results = b.emit(kind_of(kind), args)
    before = b.program(*results)
    path = save(before, tmp_path)
    assert path.stat().st_size < 2_000
    assert load(path) == before
    stored = (tmp_path / "weights" / "weight.bin").stat().st_size
    operands = [arg.type.size_bytes for arg in before.ops[0].args.values() if arg.type.size_bytes > BLOB_THRESHOLD]
    assert sum(operands) <= stored < sum(operands) + 64 + 128 * len(operands)
    for name, value in evaluate(before, {}).items():
        np.testing.assert_array_equal(value, evaluate(load(path), {})[name])


def test_equal_constants_share_one_record():
    text, files = emit(program(const("a", WEIGHTS, FP16), const("b", WEIGHTS.T.copy().T, FP16)))
    assert len(BlobFile.from_bytes(files[WEIGHT_PATH])) == 1
    assert text.count("uint64(64)") == 2


def test_constants_in_nested_blocks_are_moved():
    inner = parse("func main(bool p) { fp16 y = f(p = p) { fp16 a = g(p = p); } -> (a); } -> (y);")
    (op,) = inner.ops
    block = op.blocks[0]
    deep = Op(op.kind, op.args, op.outputs, op.attrs, (type(block)(block.inputs, (const("w", WEIGHTS, FP16),), ()),))
    text, files = emit(inner.with_(ops=(deep,)))
    assert len(BlobFile.from_bytes(files[WEIGHT_PATH])) == 1
    assert "BLOBFILE" in text


def test_what_is_emitted_reads_back_to_the_same_program():
    before = program(const("w", WEIGHTS, FP16), const("i", np.arange(50, dtype=np.int32), INT32))
    text, files = emit(before)
    assert load_blobs(parse(text), lambda path: BlobFile.from_bytes(files[path])) == before


def test_the_tag_is_that_of_text_and_weights():
    def tag(array: np.ndarray) -> str:
        text, _ = emit(program(const("w", array, FP16)), tag=True)
        return dict(parse(text).build_info)[TAG]

    assert tag(WEIGHTS) == tag(WEIGHTS.copy())
    assert tag(WEIGHTS) != tag(WEIGHTS + np.float16(1))  # the texts alone are equal
    assert tag(WEIGHTS) != tag(WEIGHTS.reshape(5, 20))
    assert len(tag(WEIGHTS)) == 64


def test_without_a_tag_the_text_says_nothing_of_the_weights():
    assert emit(program(const("w", WEIGHTS, FP16)))[0] == emit(program(const("w", WEIGHTS + np.float16(1), FP16)))[0]


def test_a_constant_in_another_file_must_be_loaded_first():
    op = const("w", WEIGHTS, FP16)
    elsewhere = Op(op.kind, {}, op.outputs, {"val": Literal(op.outputs[0].type, Blob("other.bin", 64))})
    with pytest.raises(UsageError, match=r"mil\.load"):
        emit(program(elsewhere))


# folders ------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    before = program(const("w", WEIGHTS, FP16), const("k", np.array(0.5, np.float16), FP16))
    path = save(before, tmp_path / "model")
    assert path == tmp_path / "model" / "model.mil"
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "model", "model/model.mil", "model/weights", "model/weights/weight.bin",
    ]  # fmt: skip
    assert load(path) == before
    assert load(path.parent) == before


def test_loaded_weights_are_views_of_the_file(tmp_path):
    path = save(program(const("w", WEIGHTS, FP16), const("v", WEIGHTS, FP16)), tmp_path)
    first, second = load(path).ops
    assert np.shares_memory(first.attrs["val"].value, second.attrs["val"].value)
    assert not first.attrs["val"].value.flags.writeable


def test_a_program_without_weights_has_no_weight_file(tmp_path):
    save(program(const("k", np.array(0.5, np.float16), FP16)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.mil"]


def test_saving_again_replaces_and_does_not_disturb_who_reads(tmp_path):
    path = save(program(const("w", WEIGHTS, FP16)), tmp_path)
    held = load(path).ops[0].attrs["val"].value
    save(program(const("w", WEIGHTS + np.float16(1), FP16)), tmp_path)
    assert held.tolist() == WEIGHTS.tolist()
    assert load(path).ops[0].attrs["val"].value.tolist() == (WEIGHTS + 1).tolist()


def test_a_failed_save_leaves_what_stood_there(tmp_path, monkeypatch):
    path = save(program(const("w", WEIGHTS, FP16)), tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TorchaneError, match="cannot be written: No space left on device"):
        save(program(const("w", WEIGHTS + np.float16(1), FP16)), tmp_path)
    assert load(path).ops[0].attrs["val"].value.tolist() == WEIGHTS.tolist()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.mil", "weights"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TorchaneError, match="cannot be written"):
        save(program(const("w", WEIGHTS, FP16)), tmp_path / "file")


def test_the_style_is_the_callers(tmp_path):
    one = program(const("k", np.array(0.5, np.float16), FP16))
    assert save(one, tmp_path, style=APPLE).read_text() == to_text(one, APPLE)


def test_weights_outside_the_folder_are_refused(tmp_path):
    folder = tmp_path / "model"
    save(program(const("w", WEIGHTS, FP16)), folder)
    (folder / "weights" / "weight.bin").rename(tmp_path / "weight.bin")
    text = (folder / "model.mil").read_text()
    for name in ("@model_path/../weight.bin", str(tmp_path / "weight.bin")):
        (folder / "model.mil").write_text(text.replace(WEIGHT_PATH, name))
        with pytest.raises(BlobPathError, match="its folder|own folder"):
            load(folder)
    os.symlink(tmp_path / "weight.bin", folder / "link.bin")
    (folder / "model.mil").write_text(text.replace(WEIGHT_PATH, "@model_path/link.bin"))
    with pytest.raises(BlobPathError, match="link"):
        load(folder)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParseError, match=r"nothing\.mil: the file cannot be read: No such file"):
        load(tmp_path / "nothing.mil")


def test_bytes_that_are_no_text_are_named_by_their_place(tmp_path):
    path = tmp_path / "model.mil"
    path.write_bytes(b"program(1.3)\xff")
    with pytest.raises(ParseError, match=r"model\.mil: byte 12: MIL text is UTF-8"):
        load(path)


def test_an_error_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "model.mil"
    path.write_text("program(1.3)\n{ oops }")
    with pytest.raises(ParseError, match=r"model\.mil:2:3: "):
        load(path)


def test_compiled_models_load_with_their_weights(shared_data):
    for path in sorted(shared_data.glob("mil_compiled/*.mlmodelc")):
        loaded = load(path)
        for op in loaded.ops:
            assert not any(isinstance(value.value, Blob) for value in op.attrs.values())


def test_a_compiled_model_saved_and_loaded_is_the_same(shared_data, tmp_path):
    before = load(shared_data / "mil_compiled" / "mobius-silero-unified_palette_2bit.mlmodelc")
    assert load(save(before, tmp_path, style=APPLE)) == before


def test_the_package_is_light_and_needs_no_torch():
    """NumPy aside, importing it loads neither torch nor anything that takes a while."""
    code = "import sys, torchane.mil; print(sorted({'torch', 'scipy', 'coremltools'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


def test_the_public_names():
    for name in ("parse", "load", "to_text", "save", "check", "evaluate", "diff"):
        assert callable(getattr(mil, name))
        assert getattr(mil, name).__doc__


def test_a_package_is_sent_to_its_own_reader(tmp_path):
    (tmp_path / "Manifest.json").write_text("{}")
    with pytest.raises(UsageError, match=r"torchane\.inspect\.mlpackage\.load"):
        load(tmp_path)


def test_a_constant_of_open_size_stays_in_the_text():
    values = ", ".join("1" for _ in range(100))
    text = f"func main() {{ tensor<fp16, [?]> y = const()[val = tensor<fp16, [?]>([{values}])]; }} -> (y);"
    printed, blobs = emit(parse(text))
    assert blobs == {} and parse(printed).ops == parse(text).ops


def test_the_default_function_is_kept_in_text(tmp_path):
    text = "".join(
        f"func {name}(tensor<fp16, [2]> x) {{ tensor<fp16, [2]> y = {op}(x = x); }} -> (y);"
        for name, op in (("a", "relu"), ("main", "exp"), ("b", "tanh"))
    )
    before = replace(parse(text), default_function="b")
    assert parse(to_text(before)) == parse(to_text(before, APPLE)) == before
    assert load(save(before, tmp_path)) == before
    assert before.main.name == "b" and parse(text).main.name == "main"
    x = np.ones(2, np.float16)
    assert evaluate(before, {"x": x})["y"].tolist() == evaluate(before, {"x": x}, function="b")["y"].tolist()
    assert before.with_(name="c").main.name == before.with_(name="c").default_function == "c"
    assert [str(found) for found in mil.diff(parse(text), before)] == ["~ default function: main -> b"]
    with pytest.raises(CompileError, match="the default function 'd' is none of a, main, b"):
        mil.check(replace(before, default_function="d"))
    with pytest.raises(UsageError, match="no function d"):
        replace(before, default_function="d").main  # noqa: B018
