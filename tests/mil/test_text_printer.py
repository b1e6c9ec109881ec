"""What the printer writes: it reads back to the same program, and Apple's files come out byte for byte."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from random_programs import programs

from torchane.errors import CompileError
from torchane.mil.build import Builder
from torchane.mil.ir import Function, Literal, Op, Program, Var
from torchane.mil.kinds import kind_of
from torchane.mil.text import APPLE, KERNEL, Style, parse, style_of, to_text
from torchane.mil.types import FP16, FP32, DType, TensorType

#: Apple's own files: all of them come out byte for byte, and nothing but the program and `APPLE` is needed.
APPLES = (
    "mil_compiled/coremltools-add_model.mlmodelc/model.mil",
    "mil_compiled/fluidaudio-Argmax-a.model.mil",
    "mil_compiled/fluidaudio-TokenDurationPrediction-a.model.mil",
    "mil_compiled/fluidaudio-TransposeEncoder-a.model.mil",
    "mil_compiled/fluidaudio-parakeet_eou-1280ms-streaming_encoder.model.mil",
    "mil_compiled/fluidaudio-parakeet_eou-decoder.model.mil",
    "mil_compiled/mobius-silero-silero-vad-unified-v6.0.0.mlmodelc/model.mil",
    "mil_compiled/mobius-silero-unified-v6.0.0-older.model.mil",
    "mil_compiled/mobius-silero-unified_256ms_int8.mlmodelc/model.mil",
    "mil_compiled/mobius-silero-unified_int8.mlmodelc/model.mil",
    "mil_compiled/mobius-silero-unified_palette_2bit.mlmodelc/model.mil",
    "mil_compiled/mobius-silero-unified_palette_8bit.mlmodelc/model.mil",
)

#: Texts of other emitters, reproduced in the style that `style_of` finds in them.
OTHERS = (
    "golden/espresso-full_fused/full_fused.mil",
    "mil_generated/espresso-DecodeFFNGenerator.mil",
    "mil_generated/espresso-DecodeQKVOnlyGenerator.mil",
    "mil_generated/espresso-FFNForwardInferenceGenerator.mil",
    "mil_generated/espresso-GenerationClassifierGenerator.mil",
    "mil_generated/espresso-RWKVStyleRecurrentStepGenerator.mil",
    "mil_generated/espresso-conv.mil",
    "mil_generated/espresso-ffn_fwd_taps.mil",
    "mil_generated/espresso-fused_qkv.mil",
    "mil_generated/espresso-matmul.mil",
)

#: The one file that is not reproduced, and what of it a program does not hold.
NOT_EXACT = {
    "mil_generated/espresso-sdpa_fwd_taps.mil": "one number has trailing zeros, fp16(0.125000), the others have none: fp16(-0.5)",
}

# One file was given a last newline after Apple's compiler had written it.
NEWLINE_ADDED = {"mil_compiled/coremltools-add_model.mlmodelc/model.mil"}


def test_every_shared_file_is_listed(shared_data):
    found = {str(path.relative_to(shared_data)) for path in shared_data.rglob("*.mil")}
    assert found == {*APPLES, *OTHERS, *NOT_EXACT}


@pytest.mark.parametrize("name", APPLES)
def test_apples_files_come_out_byte_for_byte(name, shared_data):
    text = (shared_data / name).read_bytes().decode()
    style = replace(APPLE, ending="\n") if name in NEWLINE_ADDED else APPLE
    assert to_text(parse(text, name), style) == text


@pytest.mark.parametrize("name", APPLES + OTHERS)
def test_files_come_out_byte_for_byte_in_their_own_style(name, shared_data):
    text = (shared_data / name).read_bytes().decode()
    assert to_text(parse(text, name), style_of(text)) == text


@pytest.mark.parametrize("name", NOT_EXACT)
def test_a_file_that_does_not_hold_all_that_is_needed(name, shared_data):
    """It differs in the spelling of numbers alone, and reads back to the same program."""
    text = (shared_data / name).read_text()
    program = parse(text, name)
    printed = to_text(program, style_of(text))
    assert printed != text
    assert parse(printed) == program
    assert _bare(printed) == _bare(text)


@pytest.mark.parametrize("style", [
    APPLE, KERNEL,
    Style(2, 0, "shortest", "\n\n", equals="=", comma=","),
    Style(4, 4, "shortest", "", attribute_equals="=", item_comma=",", size_comma=","),
    Style(0, 0, "fixed", "\n", port_comma=","),
])  # fmt: skip
def test_the_style_of_a_text_is_found(style):
    """In a program that shows each part of it."""
    b = Builder()
    x = b.input("x", (1, 4, 1, 32))
    y = b.slice_by_size(x=b.mul(x=x, y=np.float16(0.1)), begin=(0, 0, 0, 0), size=(1, 4, 1, 32))
    text = to_text(b.program(b.add(x=y, y=np.float16(0.5))), style)
    assert style_of(text) == style


def test_a_text_that_shows_nothing_has_our_style():
    assert style_of("func main() { } -> ();\n") == KERNEL


@pytest.mark.parametrize("spelling", ["hexadecimal", "exact", "shortest", "fixed"])
def test_every_fp16_reads_back_from_every_spelling(spelling):
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = _const("c", TensorType(FP16, bits.shape), bits.view(np.float16))
    program = Program((Function("main", (), (values,), ()),))
    assert parse(to_text(program, replace(KERNEL, floats=spelling))) == program


def _bare(text: str) -> list[str]:
    """The text without white space, numbers that fp16 rounds equally made equal."""
    words = []
    for word in "".join(text.split()).replace("(", " ( ").replace(")", " ) ").split():
        try:
            words.append(repr(np.float16(float.fromhex(word) if "x" in word else float(word))))
        except ValueError:
            words.append(word)
    return words


@pytest.mark.parametrize("style", [APPLE, KERNEL], ids=["apple", "kernel"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(program=programs())
def test_what_is_printed_reads_back_to_the_same_program(style, program):
    assert parse(to_text(program, style)) == program


@pytest.mark.long
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(program=programs())
def test_ten_thousand_programs_read_back(program):
    assert parse(to_text(program, APPLE)) == program


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16, DType.FP8E4M3FN, DType.FP8E5M2], ids=repr)
@pytest.mark.parametrize("style", [APPLE, KERNEL], ids=["apple", "kernel"])
def test_every_bit_pattern_of_a_small_float_reads_back(dtype, style):
    count = 1 << dtype.bits
    bits = np.arange(count, dtype=np.uint16 if dtype.bits == 16 else np.uint8)
    type_ = TensorType(dtype, (count,))
    program = Program((Function("main", (), (_const("c", type_, bits.view(dtype.numpy)),), ()),))
    assert parse(to_text(program, style)) == program


def _const(name: str, type_, value) -> Op:
    return Op(kind_of("const"), {}, (Var(name, type_),), {"val": Literal(type_, value)})


def printed(dtype: DType, value: float, style) -> str:
    """How a scalar is spelled."""
    op = _const("c", TensorType(dtype), np.array(value, dtype.numpy))
    text = to_text(Program((Function("main", (), (op,), ()),)), style)
    return text.split(f"{dtype.mil_name}(")[1].split(")")[0]


@pytest.mark.parametrize(("dtype", "value", "apple", "kernel"), [
    (FP16, 0.5, "0x1p-1", "0.5"),
    (FP16, 0.0, "0x0p+0", "0.0"),
    (FP16, -0.0, "-0x0p+0", "-0.0"),
    (FP16, 10000.0, "0x1.388p+13", "10000.0"),
    (FP16, 0.1, "0x1.998p-4", "0x1.998p-4"),     # 0.1 is not what fp16 holds
    (FP16, 2**-24, "0x1p-24", "0x1p-24"),
    (FP16, np.inf, "inf", "inf"),
    (FP16, -np.inf, "-inf", "-inf"),
    (FP16, np.nan, "nan", "nan"),
    (FP32, 0.1, "0x1.99999ap-4", "0x1.99999ap-4"),
    (FP32, 1e30, "0x1.93e594p+99", "0x1.93e594p+99"),
    (DType.INT32, -7, "-7", "-7"),
])  # fmt: skip
def test_how_numbers_are_spelled(dtype, value, apple, kernel):
    assert printed(dtype, value, APPLE) == apple
    assert printed(dtype, value, KERNEL) == kernel


def small() -> Program:
    b = Builder()
    x = b.input("x", (1, 4, 1, 32))
    y = b.add(x=x, y=b.mul(x=x, y=0.5, name="half"), name="y")
    return b.program(y)


def test_a_scalar_is_spelled_as_a_tensor_before_version_1_3():
    program = small()
    assert "fp16(0.5)" in to_text(program)
    old = to_text(Program(program.functions, "1.0", program.build_info))
    assert "tensor<fp16, []>(0.5)" in old
    assert 'name = tensor<string, []>("half")' in old
    assert "dict<tensor<string, []>, tensor<string, []>>" in old


def test_the_whole_of_a_small_program():
    assert (
        to_text(small())
        == """\
program(1.3)
[buildInfo = dict<string, string>({{"coremlc-component-MIL", "3510.2.1"}, {"coremlc-version", "3505.4.1"}, \
{"coremltools-component-milinternal", ""}, {"coremltools-version", "9.0"}})]
{
    func main<ios18>(tensor<fp16, [1, 4, 1, 32]> x) {
        tensor<fp16, [1, 4, 1, 32]> half = mul(x = x, y = fp16(0.5))[name = string("half")];
        tensor<fp16, [1, 4, 1, 32]> y = add(x = x, y = half)[name = string("y")];
    } -> (y);
}
"""
    )


def test_nested_blocks_are_indented():
    program = parse(
        "func main(bool p, fp16 x) { fp16 y = cond(pred = p) then() { fp16 a = relu(x = x); } -> (a) () { } -> (x); } -> (y);"
    )
    body = to_text(program).split("{\n", 3)[3]
    assert (
        body
        == """\
                fp16 a = relu(x = x);
            } -> (a)
            () {
            } -> (x);
    } -> (y);
}
"""
    )


@pytest.mark.parametrize("name", ["", "a b", "1a", "a-b", "a;", 'a"', "é"])
def test_a_name_that_text_cannot_hold_is_refused(name):
    program = Program((Function("main", (Var(name, TensorType(FP16)),), (), ()),))
    with pytest.raises(CompileError, match="is not a name that MIL text can hold"):
        to_text(program)


def test_a_version_that_text_cannot_hold_is_refused():
    with pytest.raises(CompileError, match="version"):
        to_text(Program((), "1.3){"))


def test_a_value_that_is_no_constant_is_refused():
    with pytest.raises(CompileError, match="cannot be written"):
        to_text(Program((Function("main", (), (_const("c", TensorType(FP16), 1.0),), ()),)))
