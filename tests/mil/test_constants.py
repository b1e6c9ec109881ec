"""Constants move between statements, arguments and files, and keep their bits."""

import numpy as np
import pytest

from torchane.errors import ParseError
from torchane.mil.blobs import BlobError, BlobFile, BlobWriter
from torchane.mil.check import check
from torchane.mil.constants import inline_constants, load_blobs, map_literals
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Blob, Literal, walk
from torchane.mil.text import parse
from torchane.mil.types import DType


def test_constants_move_into_the_arguments_that_read_them():
    program = parse("""func main(tensor<fp16, [2, 3]> x) {
        tensor<int32, [2]> p = const()[name = string("p"), val = tensor<int32, [2]>([1, 0])];
        fp16 k = const()[name = string("k"), val = fp16(0.5)];
        tensor<fp16, [3, 2]> y = transpose(perm = p, x = x)[name = string("y")];
        tensor<fp16, [3, 2]> z = concat(values = (y, k), axis = int32(0));
    } -> (z);""")
    wanted = parse("""func main(tensor<fp16, [2, 3]> x) {
        tensor<fp16, [3, 2]> y = transpose(perm = tensor<int32, [2]>([1, 0]), x = x)[name = string("y")];
        tensor<fp16, [3, 2]> z = concat(values = (y, fp16(0.5)), axis = int32(0));
    } -> (z);""")
    assert inline_constants(program) == wanted


def test_a_program_without_constants_stays_as_it_is():
    program = parse("func main(fp16 x) { fp16 y = relu(x = x); } -> (y);")
    assert inline_constants(program) == program


def test_a_constant_that_is_an_output_keeps_its_statement():
    program = parse("func main() { fp16 c = const()[val = fp16(1)]; fp16 y = relu(x = c); } -> (c, y);")
    inlined = inline_constants(program)
    assert [op.kind.name for op in inlined.ops] == ["const", "relu"]
    assert isinstance(inlined.ops[1].args["x"], Literal)


def test_constants_move_into_nested_blocks():
    program = parse("""func main(bool p, fp16 x) {
        fp16 c = const()[val = fp16(1)];
        fp16 y = their_cond(pred = p)
            a() { fp16 d = const()[val = fp16(2)]; fp16 s = add(x = c, y = d); } -> (s)
            b() { fp16 e = const()[val = fp16(3)]; } -> (e);
    } -> (y);""")
    (op,) = inline_constants(program).ops
    first, second = op.blocks
    assert [inner.kind.name for inner in first.ops] == ["add"]
    assert first.ops[0].inputs == ()
    assert [inner.kind.name for inner in second.ops] == ["const"]


def test_a_constant_that_is_an_output_of_a_block_around_it_keeps_its_statement():
    program = parse("""func main(bool p) {
        fp16 c = const()[val = fp16(1)];
        fp16 y = their_cond(pred = p) { } -> (c);
    } -> (y);""")
    inlined = inline_constants(program)
    check(inlined)
    assert [op.kind.name for op in inlined.ops] == ["const", "their_cond"]


def test_real_programs_mean_the_same(shared_data):
    for name in ("fluidaudio-Argmax-a.model.mil", "fluidaudio-TokenDurationPrediction-a.model.mil"):
        program = parse((shared_data / "mil_compiled" / name).read_text())
        inlined = inline_constants(program)
        assert all(op.kind.name != "const" for op in walk(inlined.ops))
        rng = np.random.default_rng(0)
        inputs = {var.name: rng.standard_normal(var.shape).astype(np.float16) for var in program.inputs}
        before, after = evaluate(program, inputs), evaluate(inlined, inputs)
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert np.asarray(value).tobytes() == np.asarray(after[key]).tobytes()


# files --------------------------------------------------------------------------------------------------


def stored(array: np.ndarray, dtype: DType) -> tuple[BlobFile, int]:
    writer = BlobWriter()
    offset = writer.add(array, dtype)
    return BlobFile.from_bytes(writer.to_bytes()), offset


def reading(type_: str, offset: int):
    blob = f'{type_}(BLOBFILE(path = string("w.bin"), offset = uint64({offset})))'
    return parse(f"func main() {{ {type_} c = const()[val = {blob}]; }} -> (c);")


def test_constants_come_out_of_their_file():
    file, offset = stored(np.arange(6, dtype=np.float16), DType.FP16)
    (op,) = load_blobs(reading("tensor<fp16, [2, 3]>", offset), {"w.bin": file}.__getitem__).ops
    assert op.attrs["val"].value.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_constants_are_views_of_their_file():
    file, offset = stored(np.arange(6, dtype=np.float16), DType.FP16)
    (op,) = load_blobs(reading("tensor<fp16, [6]>", offset), lambda path: file).ops
    assert np.shares_memory(op.attrs["val"].value, file.read(offset)[1])


@pytest.mark.parametrize(
    "dtype", [DType.INT4, DType.UINT1, DType.UINT2, DType.UINT3, DType.UINT4, DType.UINT6], ids=repr
)
def test_sub_byte_constants_come_out_of_their_file(dtype):
    array = np.array([1, 0, 1, 1, 0], dtype.numpy)
    file, offset = stored(array, dtype)
    (op,) = load_blobs(reading(f"tensor<{dtype.mil_name}, [5]>", offset), lambda path: file).ops
    assert op.attrs["val"].value.tolist() == array.tolist()


def test_a_mask_packed_into_bytes_is_read_as_bits():
    file, offset = stored(np.array([0b101, 1], np.uint8), DType.UINT8)
    (op,) = load_blobs(reading("tensor<uint1, [9]>", offset), lambda path: file).ops
    assert op.attrs["val"].value.tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 1]


def test_int8_data_under_the_code_of_fp16_is_read():
    """Kernels in the field write code 1 for everything, and it works."""
    file, offset = stored(np.array([1, -2], np.int8).view(np.float16), DType.FP16)
    (op,) = load_blobs(reading("tensor<int8, [2]>", offset), lambda path: file).ops
    assert op.attrs["val"].value.tolist() == [1, -2]


@pytest.mark.parametrize(
    "type_", ["tensor<fp16, [5]>", "tensor<fp16, [7]>", "tensor<fp32, [6]>", "tensor<fp16, [1152921504606846976]>"]
)
def test_a_record_of_another_size_is_refused(type_):
    file, offset = stored(np.arange(6, dtype=np.float16), DType.FP16)
    with pytest.raises(ParseError, match="the program declares|no whole number"):
        load_blobs(reading(type_, offset), lambda path: file)


@pytest.mark.parametrize("type_", ["tensor<fp16, [?]>", "tensor<string, [1]>", "list<fp16, 6>"])
def test_types_that_no_file_holds_are_refused(type_):
    file, offset = stored(np.arange(6, dtype=np.float16), DType.FP16)
    with pytest.raises(ParseError, match="cannot be read from a weight file"):
        load_blobs(reading(type_, offset), lambda path: file)


def test_a_wrong_offset_is_refused():
    file, _ = stored(np.arange(6, dtype=np.float16), DType.FP16)
    with pytest.raises(BlobError):
        load_blobs(reading("tensor<fp16, [6]>", 128), lambda path: file)


def test_map_literals_reaches_arguments_attributes_and_blocks():
    program = parse("""func main(bool p) {
        fp16 a = f(x = fp16(1), y = (p, fp16(2)))[k = fp16(3)] { fp16 b = f(x = fp16(4)); } -> (b);
    } -> (a);""")
    seen = []
    map_literals(program, lambda literal: seen.append(literal.python()) or literal)
    assert sorted(seen) == [1, 2, 3, 4]


def test_blobs_in_attributes_of_constexpr_ops_are_read():
    file, offset = stored(np.array([1, 2], np.int8), DType.INT8)
    program = parse(
        "func main() { tensor<fp16, [2]> w = constexpr_affine_dequantize()[axis = int32(0), quantized_data = "
        f'tensor<int8, [2]>(BLOBFILE(path = string("w.bin"), offset = uint64({offset}))), scale = fp16(2), '
        "zero_point = int8(0)]; } -> (w);"
    )
    assert program.ops[0].attrs["quantized_data"].value == Blob("w.bin", offset)
    (op,) = load_blobs(program, lambda path: file).ops
    assert op.attrs["quantized_data"].value.tolist() == [1, 2]
