"""What a semantic diff sees and what it does not."""

import time

import numpy as np
from hypothesis import HealthCheck, given, settings
from random_programs import programs

from torchane.mil.build import Builder
from torchane.mil.diff import diff
from torchane.mil.ir import Program
from torchane.mil.save import load
from torchane.mil.text import parse


def program(scale: float = 0.5, names: str = "", extra: bool = False, width: int = 4) -> Program:
    b = Builder()
    x = b.input("x", (1, width))
    y = b.mul(x=x, y=scale, name=names + "half")
    z = b.exp(x=y, name=names + "e")
    if extra:
        z = b.abs(x=z, name="extra")
    return b.program(b.add(x=z, y=y, name="out"))


def said(before: Program, after: Program) -> list[str]:
    return [str(difference) for difference in diff(before, after)]


def test_equal_programs_have_no_difference():
    assert diff(program(), program()) == ()


def test_names_of_values_do_not_matter():
    assert diff(program(), program(names="other_")) == ()


def test_where_constants_stand_does_not_matter():
    inline = parse("func main(fp16 x) { fp16 y = mul(x = x, y = fp16(2)); } -> (y);")
    named = parse("func main(fp16 x) { fp16 c = const()[val = fp16(2)]; fp16 y = mul(y = c, x = x); } -> (y);")
    assert diff(inline, named) == ()


def test_the_order_of_independent_ops_does_not_matter():
    text = "func main(fp16 x) {{ fp16 a = {}; fp16 b = {}; fp16 y = sub(x = {}, y = {}); }} -> (y);"
    first = parse(text.format("exp(x = x)", "sin(x = x)", "a", "b"))
    second = parse(text.format("sin(x = x)", "exp(x = x)", "b", "a"))
    assert diff(first, second) == ()


def test_build_info_does_not_matter():
    assert diff(program(), Program(program().functions, build_info=())) == ()


def test_a_changed_constant_is_named_once():
    assert said(program(0.5), program(0.25)) == ["~ op 'half' (mul): y: fp16(0.5) -> fp16(0.25)"]


def test_an_added_op_and_who_reads_it_now():
    assert said(program(), program(extra=True)) == ["+ op 'extra' (abs)", "~ op 'out' (add): x: e -> extra"]


def test_a_removed_op():
    assert said(program(extra=True), program()) == ["- op 'extra' (abs)", "~ op 'out' (add): x: extra -> e"]


def test_changed_types():
    lines = said(program(), program(width=8))
    assert lines[0] == "~ input 'x': tensor<fp16, [1, 4]> -> tensor<fp16, [1, 8]>"
    assert "~ op 'e' (exp): result e: tensor<fp16, [1, 4]> -> tensor<fp16, [1, 8]>" in lines
    assert lines[-1] == "~ output 'out': tensor<fp16, [1, 4]> -> tensor<fp16, [1, 8]>"


def test_swapped_operands():
    first = parse("func main(fp16 x, fp16 w) { fp16 y = sub(x = x, y = w); } -> (y);")
    second = parse("func main(fp16 x, fp16 w) { fp16 y = sub(x = w, y = x); } -> (y);")
    assert said(first, second) == ["~ op 'y' (sub): x: x -> w", "~ op 'y' (sub): y: w -> x"]


def test_another_kind_of_op():
    first = parse("func main(fp16 x) { fp16 y = sin(x = x); } -> (y);")
    second = parse("func main(fp16 x) { fp16 y = cos(x = x); } -> (y);")
    assert said(first, second) == ["~ op 'y' (cos): was sin"]


def test_an_op_of_another_form_is_no_change_of_one():
    first = parse("func main(fp16 x) { fp16 y = sin(x = x); } -> (y);")
    second = parse("func main(fp16 x) { fp16 y = add(x = x, y = x); } -> (y);")
    assert said(first, second) == ["- op 'y' (sin)", "+ op 'y' (add)", "~ output 'y': is another value"]


def test_what_reads_an_op_of_another_kind_is_not_reported():
    form = "func main(fp16 x) {{ fp16 a = {}(x = x); fp16 y = mul(x = a, y = x); }} -> (y);"
    assert said(parse(form.format("sin")), parse(form.format("cos"))) == ["~ op 'a' (cos): was sin"]


def test_added_and_removed_arguments_and_attributes():
    first = parse("func main(fp16 x) { fp16 y = f(x = x, a = int32(1))[k = int32(1)]; } -> (y);")
    second = parse("func main(fp16 x) { fp16 y = f(x = x, b = int32(1))[k = int32(2)]; } -> (y);")
    assert said(first, second) == [
        "~ op 'y' (f): a: int32(1) -> nothing",
        "~ op 'y' (f): b: nothing -> int32(1)",
        "~ op 'y' (f): k: int32(1) -> int32(2)",
    ]


def test_ports():
    first = parse("func main(fp16 x, fp16 w) { fp16 y = exp(x = x); } -> (y);")
    second = parse("func main(fp16 x, fp16 v) { fp16 y = exp(x = x); } -> (y, x);")
    assert said(first, second) == [
        "- input 'w': tensor<fp16, []>",
        "+ input 'v': tensor<fp16, []>",
        "+ output 'x': tensor<fp16, []>",
    ]


def test_the_order_of_outputs_matters():
    first = parse("func main(fp16 x) { fp16 y = exp(x = x); fp16 z = sin(x = x); } -> (y, z);")
    assert said(first, first.with_(outputs=first.outputs[::-1])) == ["~ order of the outputs: z, y"]


def test_functions_versions_and_opsets():
    text = "program({}){{ func {}<{}>(fp16 x) {{ }} -> (x); }}"
    assert said(parse(text.format("1.3", "main", "ios18")), parse(text.format("1.0", "main", "ios16"))) == [
        "~ version: 1.3 -> 1.0",
        "~ opset: ios18 -> ios16",
    ]
    assert said(parse(text.format("1.3", "a", "ios18")), parse(text.format("1.3", "b", "ios18"))) == [
        "- function 'a'",
        "+ function 'b'",
    ]


def test_nested_blocks():
    text = "func main(bool p, fp16 x) {{ fp16 y = their_cond(pred = p) {{ fp16 a = mul(x = x, y = fp16({})); }} -> (a); }} -> (y);"
    assert diff(parse(text.format(1)), parse(text.format(1).replace(" a", " b").replace("(a)", "(b)"))) == ()
    assert said(parse(text.format(1)), parse(text.format(2))) == ["~ op 'y' (their_cond): its blocks differ"]


def test_operands_within_a_block():
    text = "func main(bool p, fp16 x, fp16 w) {{ fp16 k = exp(x = x); fp16 y = f(p = p) (fp16 i) {{ fp16 a = sub({}); }} -> (a); }} -> (y);"
    first = parse(text.format("x = k, y = i"))
    assert diff(first, first) == ()
    assert said(first, parse(text.format("x = i, y = k"))) == ["~ op 'y' (f): its blocks differ"]
    assert said(first, parse(text.format("x = w, y = i"))) == ["~ op 'y' (f): its blocks differ"]


def test_a_block_that_reads_a_changed_value_does_not_differ_itself():
    text = "func main(fp16 x) {{ fp16 k = mul(x = x, y = fp16({})); fp16 y = f(p = x) {{ fp16 a = exp(x = k); }} -> (a); }} -> (y);"
    assert said(parse(text.format(1)), parse(text.format(2))) == ["~ op 'k' (mul): y: fp16(1.0) -> fp16(2.0)"]


def test_large_constants_are_counted():
    def made(array: np.ndarray) -> Program:
        b = Builder()
        x = b.input("x", (100,))
        return b.program(b.add(x=x, y=array, name="y"))

    other = np.zeros(100, np.float16)
    other[:3] = 1
    assert said(made(np.zeros(100, np.float16)), made(other)) == [
        "~ op 'y' (add): y: 3 of 100 values of the tensor<fp16, [100]> differ"
    ]


def test_two_builds_of_one_real_model(shared_data):
    """silero-vad as float and with palettes: the ops are the same, the weights are not."""
    folder = shared_data / "mil_compiled"
    eight = load(folder / "mobius-silero-unified_palette_8bit.mlmodelc" / "model.mil")
    assert diff(eight, eight) == ()
    changes = diff(eight, load(folder / "mobius-silero-unified_palette_2bit.mlmodelc" / "model.mil"))
    assert changes
    assert {difference.change for difference in changes} == {"changed"}


def test_large_programs_are_compared_in_seconds(shared_data):
    path = shared_data / "mil_compiled" / "fluidaudio-parakeet_eou-1280ms-streaming_encoder.model.mil"
    text = path.read_text()
    start = time.process_time()
    assert diff(parse(text), parse(text.replace("(0x1p-1)", "(0x1p-2)")))
    assert time.process_time() - start < 20


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(program=programs())
def test_any_program_is_like_itself(program):
    assert diff(program, program) == ()
