"""What the parser accepts, and what it says of what it does not."""

import numpy as np
import pytest

from torchane.errors import ParseError
from torchane.mil.ir import BUILD_INFO, Blob, Literal, Var
from torchane.mil.text import MilSyntaxError, parse, to_text
from torchane.mil.text.scanner import MAX_DEPTH
from torchane.mil.types import (
    BOOL,
    FP16,
    FP32,
    INT32,
    STRING,
    DictType,
    DType,
    ListType,
    StateType,
    TensorType,
    TupleType,
)


def function(body: str = "", inputs: str = "tensor<fp16, [2]> x", outputs: str = "x", attrs: str = "") -> str:
    return f"func main<ios18>({inputs}) {attrs} {{ {body} }} -> ({outputs});"


def constant(text: str) -> Literal:
    """The Literal that `val = text` reads as."""
    (op,) = parse(function(f'fp16 c = const()[name = string("c"), val = {text}];')).ops
    return op.attrs["val"]


def array(text: str) -> list:
    return constant(text).value.tolist()


# whole texts ----------------------------------------------------------------------------------------


def test_a_function_alone_is_a_program():
    program = parse("func main(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = relu(x = x); } -> (y);")
    assert program.version == "1.3"
    assert program.build_info == BUILD_INFO
    assert program.main.opset == "ios18"
    assert program.inputs == (Var("x", TensorType(FP16, (2,))),)
    assert program.outputs == (Var("y", TensorType(FP16, (2,))),)
    assert program.ops[0].kind.name == "relu"
    assert program.ops[0].attrs == {}


def test_the_program_line_is_read():
    program = parse('program(1.0)[buildInfo = dict<string, string>({{"a", "b"}, {"c", ""}})]{' + function() + "}")
    assert program.version == "1.0"
    assert program.build_info == (("a", "b"), ("c", ""))


def test_a_program_without_build_info_has_none():
    assert parse("program(1.0){" + function() + "}").build_info == ()


def test_other_attributes_of_the_program_are_kept():
    program = parse('program(1.3)[x = int32(1), buildInfo = dict<string, string>({{"a", "b"}})]{' + function() + "}")
    assert program.build_info == (("a", "b"),)
    assert program.attrs["x"].python() == 1


def test_mutable_weight_files_are_an_attribute_of_the_program():
    text = 'BlobFileMutabilityInfo = tuple<string, dict<string, string>>(("Paths", {{"@model_path/a.bin", "@model_path/a.bin"}}))'
    program = parse('program(1.3)[buildInfo = dict<string, string>({{"a", "b"}}), ' + text + "]{" + function() + "}")
    name, paths = program.attrs["BlobFileMutabilityInfo"].value
    assert name.value == "Paths"
    assert paths.value[0][0].value == "@model_path/a.bin"
    assert text in to_text(program)


def test_build_info_of_another_type_is_kept_as_an_attribute():
    program = parse("program(1.3)[buildInfo = int32(1)]{" + function() + "}")
    assert program.build_info == ()
    assert program.attrs["buildInfo"].python() == 1


def test_build_info_may_lack_its_outer_braces():
    program = parse('program(1.3)[buildInfo = dict<string, string>({"a", "b"}, {"c", "d"})]{' + function() + "}")
    assert program.build_info == (("a", "b"), ("c", "d"))


def test_several_functions():
    program = parse("program(1.3){" + function().replace("main", "one") + function().replace("main", "two") + "}")
    assert [f.name for f in program.functions] == ["one", "two"]


def test_two_functions_have_two_names():
    with pytest.raises(ParseError, match="two functions named 'main'"):
        parse(function() + function())


def test_functions_do_not_see_each_others_values():
    with pytest.raises(ParseError, match="'a' is not defined"):
        parse(function("fp16 a = const()[val = fp16(1)];") + function(outputs="a").replace("main", "two"))


def test_comments_and_white_space_are_free():
    text = """// a comment
    program ( 1.3 ) /* another
      one */ [ buildInfo = dict < string , string > ( { { "a" , "b" } } ) ]
    { func main < ios18 > ( tensor < fp16 , [ 2 ] > x )
      { tensor<fp16,[2]>y=add(x=x,y=x)[name=string("y")] ; }->(y) ; // end
    } // after the program"""
    spaced = parse(text)
    assert spaced == parse(to_text(spaced))
    assert spaced.ops[0].kind.name == "add"


def test_the_last_newline_and_semicolon_may_be_missing():
    assert parse(function()[:-1]) == parse(function() + "\n")


def test_a_byte_order_mark_is_stepped_over():
    assert parse("\ufeff" + function()) == parse(function())


def test_a_function_may_give_nothing_back():
    assert parse("func main() { }").outputs == ()


# statements -----------------------------------------------------------------------------------------


def test_several_results():
    (op,) = parse(function("tensor<fp16, [1]> a, tensor<fp16, [1]> b = split(x = x, num_splits = int32(2));")).ops
    assert [var.name for var in op.outputs] == ["a", "b"]


def test_results_in_brackets():
    (op,) = parse(function("(fp16 a, fp16 b) = f(x = x);")).ops
    assert [var.name for var in op.outputs] == ["a", "b"]


def test_no_result():
    (op,) = parse(function('write_state(input = x, data = x)[name = string("w")];')).ops
    assert op.outputs == ()
    assert op.name == "w"


def test_arguments_keep_their_order():
    (op,) = parse(function('fp16 a = f(z = x, a = x, m = x)[name = string("a")];')).ops
    assert list(op.args) == ["z", "a", "m"]


def test_an_argument_may_be_several_values_and_constants():
    (op,) = parse(function("fp16 a = concat(values = (x, fp16(1), x), axis = int32(0));")).ops
    assert op.args["values"] == (op.inputs[0], constant("fp16(1)"), op.inputs[0])


@pytest.mark.parametrize(("text", "dtype", "value"), [
    ("true", BOOL, True), ("3", INT32, 3), ("-1", INT32, -1), ("0.5", FP32, 0.5), ('"fp16"', STRING, "fp16"),
    ("[1, 2]", INT32, (1, 2)), ("[true]", BOOL, (True,)), ("[0.5, 1]", FP32, (0.5, 1.0)), ('["a"]', STRING, ("a",)),
    ("[]", INT32, ()),
])  # fmt: skip
def test_a_constant_argument_may_lack_its_type(text, dtype, value):
    (op,) = parse(function(f"fp16 a = f(x = x, k = {text});")).ops
    assert op.args["k"].type.dtype is dtype
    assert op.args["k"].python() == value


def test_unknown_ops_are_kept():
    (op,) = parse(function('tensor<fp16, [?]> a = com.apple.odd(p = x, q = int32(1))[note = string("n")];')).ops
    assert op.kind.name == "com.apple.odd"
    assert not op.kind.known
    assert op.attrs["note"].value == "n"


def test_attributes_come_in_any_order():
    first = parse(function('fp16 c = const()[name = string("c"), val = fp16(1)];'))
    second = parse(function('fp16 c = const()[val = fp16(1), name = string("c")];'))
    assert first == second
    assert list(second.ops[0].attrs) == ["val", "name"]


def test_constexpr_ops_hold_constants_as_attributes():
    (op,) = parse(function(
        "tensor<fp16, [2]> w = constexpr_affine_dequantize()[axis = int32(0), name = string(\"w\"), "
        "quantized_data = tensor<int8, [2]>(BLOBFILE(path = string(\"@model_path/w.bin\"), offset = uint64(64))), "
        "scale = fp16(0x1p-3), zero_point = int8(0)];"
    )).ops  # fmt: skip
    assert op.attrs["quantized_data"].value == Blob("@model_path/w.bin", 64)
    assert op.attrs["scale"].python() == 0.125


def test_flexible_shapes_behind_the_parameters():
    types = (
        "tuple<tuple<tensor<string, []>, dict<tensor<string, []>, tensor<int32, [?]>>>, "
        "tuple<tensor<string, []>, dict<tensor<string, []>, list<tensor<int32, [2]>, ?>>>>"
    )
    values = '((("DefaultShapes", {{"x", [1, 1]}}), ("RangeDims", {{"x", [[1, 1], [1, 2048]]}})))'
    program = parse(function(inputs="tensor<fp16, [1, ?]> x", attrs=f"[FlexibleShapeInformation = {types}{values}]"))
    info = program.main.attrs["FlexibleShapeInformation"]
    (default_name, defaults), (_, ranges) = (part.value for part in info.value)
    assert default_name.value == "DefaultShapes"
    assert defaults.value[0][1].type == TensorType(INT32, (None,))
    assert defaults.value[0][1].value.tolist() == [1, 1]
    assert [item.value.tolist() for item in ranges.value[0][1].value] == [[1, 1], [1, 2048]]
    assert program.inputs[0].shape == (1, None)


def test_states():
    program = parse(function(
        "tensor<fp16, [2]> r = read_state(input = kv)[name = string(\"r\")];", "state<tensor<fp16, [2]>> kv", "r"
    ))  # fmt: skip
    assert program.inputs[0].type == StateType(TensorType(FP16, (2,)))


def test_nested_blocks():
    (op,) = parse(
        function("""
        tensor<fp16, [2]> y = cond(pred = x)[name = string("y")]
            then() { tensor<fp16, [2]> a = relu(x = x)[name = string("a")]; } -> (a)
            otherwise(fp16 k) { } -> (x);
    """)
    ).ops
    assert [block.name for block in op.blocks] == ["then", "otherwise"]
    assert op.blocks[0].ops[0].kind.name == "relu"
    assert op.blocks[1].inputs == (Var("k", TensorType(FP16)),)
    assert op.blocks[1].outputs == (Var("x", TensorType(FP16, (2,))),)


def test_blocks_may_lack_names_and_be_parted_by_commas():
    (op,) = parse(function("fp16 y = while_loop(loop_vars = x) (fp16 a) { } -> (a), { } -> (x);")).ops
    assert [block.name for block in op.blocks] == ["", ""]
    assert [len(block.inputs) for block in op.blocks] == [1, 0]


def test_brackets_may_stand_behind_the_blocks():
    form = "func main(bool p, fp16 x) {{ fp16 y = cond(pred = p){} then() {{ }} -> (x) {}; }} -> (y);"
    name = '[name = string("y")]'
    assert parse(form.format(name, "")) == parse(form.format("", name))


def test_what_a_block_defines_is_unknown_behind_it():
    with pytest.raises(ParseError, match="'a' is not defined"):
        parse(function("fp16 y = cond(pred = x) { fp16 a = relu(x = x); } -> (a); fp16 z = relu(x = a);"))


def test_two_blocks_may_use_one_name():
    parse(function("fp16 y = cond(pred = x) { fp16 a = relu(x = x); } -> (a) { fp16 a = exp(x = x); } -> (a);"))


# types and constants --------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "type_"), [
    ("tensor<fp16, [1, ?, 3]>", TensorType(FP16, (1, None, 3))),
    ("tensor<int32, []>", TensorType(INT32)),
    ("uint64", TensorType(DType.UINT64)),
    ("list<tensor<fp16, [2]>, 4>", ListType(TensorType(FP16, (2,)), 4)),
    ("list<int32, ?>", ListType(TensorType(INT32))),
    ("tuple<int32, string>", TupleType((TensorType(INT32), TensorType(STRING)))),
    ("tuple<>", TupleType(())),
    ("dict<string, list<bool, 1>>", DictType(TensorType(STRING), ListType(TensorType(BOOL), 1))),
    ("state<tensor<fp16, [2]>>", StateType(TensorType(FP16, (2,)))),
])  # fmt: skip
def test_types(text, type_):
    assert parse(function(inputs=f"{text} x")).inputs[0].type == type_


@pytest.mark.parametrize("dtype", DType, ids=repr)
def test_every_element_type_has_a_name(dtype):
    assert parse(function(inputs=f"tensor<{dtype.mil_name}, [1]> x")).inputs[0].type.dtype is dtype


@pytest.mark.parametrize(("text", "value"), [
    ("fp16(0.5)", 0.5), ("fp16(-0.5)", -0.5), ("fp16(1e-06)", float(np.float16(1e-6))), ("fp16(0)", 0.0),
    ("fp16(0x1p-3)", 0.125), ("fp32(-0x1.8p+1)", -3.0), ("fp16(0x0p+0)", 0.0), ("fp32(.5)", 0.5), ("fp32(2.)", 2.0),
    ("fp32(+1e2)", 100.0), ("fp16(inf)", np.inf), ("fp16(-inf)", -np.inf), ("fp32(infinity)", np.inf),
    ("tensor<fp16, []>(0.5)", 0.5), ("bool(true)", True), ("bool(false)", False), ("int32(-7)", -7),
    ("uint64(18446744073709551615)", 2**64 - 1), ("int4(-8)", -8), ("uint6(63)", 63), ("int32(0x10)", 16),
    ("fp16(1e400)", np.inf), ("fp32(0x1p+99999)", np.inf), ("fp32(-0x1p+99999)", -np.inf), ("fp32(1e-400)", 0.0),
])  # fmt: skip
def test_scalars(text, value):
    assert array(text) == value


def test_nan():
    assert np.isnan(array("fp16(nan)"))
    assert np.signbit(array("fp16(-nan)"))
    assert constant("fp16(nan(0x7e01))").value.view(np.uint16) == 0x7E01


def test_minus_zero():
    assert np.signbit(array("fp16(-0.0)"))


def test_numbers_of_types_that_numpy_lacks_are_bit_patterns():
    assert array("bf16(1.0)") == 0x3F80
    assert array("fp8e4m3fn(1.0)") == 0x38
    assert array("fp8e5m2(-2.0)") == 0xC0


@pytest.mark.parametrize(("text", "value"), [
    ("tensor<int32, [4]>([0, 1, 3, 2])", [0, 1, 3, 2]),
    ("tensor<bool, [2]>([true, false])", [True, False]),
    ("tensor<fp16, [2]>([0x1p+0, -inf])", [1.0, -np.inf]),
    ("tensor<int32, [2, 2]>([[1, 2], [3, 4]])", [[1, 2], [3, 4]]),
    ("tensor<int32, [2, 2]>([1, 2, 3, 4])", [[1, 2], [3, 4]]),
    ("tensor<int32, [1, 2, 1]>([[[1], [2]]])", [[[1], [2]]]),
    ("tensor<int32, [0]>([])", []),
    ("tensor<int32, [2, 0]>([])", [[], []]),
    ("tensor<int32, [?]>([7])", [7]),
    ("tensor<fp32, [2]>([ 1 , // one\n 2 ])", [1.0, 2.0]),
])  # fmt: skip
def test_tensors(text, value):
    assert array(text) == value


def test_tensors_of_strings():
    assert constant('tensor<string, [2]>(["a", "b,]"])').value == ("a", "b,]")


@pytest.mark.parametrize(("text", "value"), [
    (r'"plain"', "plain"), (r'""', ""), (r'"say \"hi\""', 'say "hi"'), (r'"a\\b"', "a\\b"), (r'"\n\t\r\0"', "\n\t\r\0"),
    (r'"\x41\u00e9"', "Aé"), ('"é漢"', "é漢"), (r'"\q"', "q"), ('"a//b"', "a//b"), ('"];"', "];"),
])  # fmt: skip
def test_strings(text, value):
    assert constant(f"string({text})").value == value


@pytest.mark.parametrize("text", [
    'list<int32, 2>([1, 2])', 'list<int32, ?>([])', 'tuple<int32, string>((1, "a"))', 'tuple<>(())',
    'dict<string, int32>({{"a", 1}, {"b", 2}})', 'dict<string, int32>({})', 'tuple<tuple<int32>>()',
    'tuple<int32, fp16>((int32(1), fp16(2)))', 'list<list<int32, ?>, ?>([[1], [], [2, 3]])',
    'tuple<tensor<int32, [2]>, tensor<bool, [1]>>(([1, 2], [true]))',
])  # fmt: skip
def test_containers_survive_printing(text):
    program = parse(function(f"fp16 c = const()[val = {text}];"))
    assert parse(to_text(program)) == program


@pytest.mark.parametrize("text", [
    'BLOBFILE(path = string("w.bin"), offset = uint64(64))', 'BLOBFILE(offset=uint64(64),path=string("w.bin"))',
    'BLOBFILE(path = tensor<string, []>("w.bin"), offset = tensor<uint64, []>(64))', 'BLOBFILE(path="w.bin", offset=64)',
])  # fmt: skip
def test_blobs(text):
    assert constant(f"tensor<fp16, [2]>({text})").value == Blob("w.bin", 64)


def test_the_value_of_a_name_comes_before_the_word():
    program = parse(function("fp16 y = relu(x = inf);", "fp16 inf", "y"))
    assert program.ops[0].args["x"] == program.inputs[0]


# errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "reason"), [
    ("", "expected func and found the end of the text"),
    ("hello", "each beginning with func"),
    ("program(1.3){}", "expected func and found '}'"),
    ("program(1.3)", "expected '{' before the functions"),
    ("program(0x1p3){}", "a version is a number such as 1.3"),
    ("program(-1){}", "a version is a number such as 1.3"),
    ("program 1.3", "expected '\\(' after program"),
    (function() + "rest", "beginning with func"),
    ("program(1.3){" + function() + "} rest", "expected the end of the text and found 'rest'"),
    (function(outputs="z"), "the name 'z' is not defined"),
    (function("fp16 y = relu(x = z);"), "the name 'z' is not defined"),
    (function("fp16 y = relu(x = y);"), "the name 'y' is not defined"),
    (function("fp16 y = relu(x = x)"), "expected ';' at the end of the statement relu and found '}'"),
    (function("fp16 y = relu(x = x)[name = string(\"y\"];"), "expected '\\)' after the value"),
    (function("fp16 y = f(x = x, x = x);"), "the argument 'x' is given twice"),
    (function("fp16 y = f()[a = int32(1), a = int32(1)];"), "the attribute 'a' is given twice"),
    (function(inputs="fp16 x, fp16 x"), "two parameters have one name"),
    (function(inputs="half x"), "'half' is not a type"),
    (function(inputs="tensor<half, [1]> x"), "'half' is not an element type"),
    (function(inputs="tensor<fp16, [1.5]> x"), "a size is a whole number"),
    (function(inputs="tensor<fp16, [-1]> x"), "a size is a whole number"),
    (function(inputs="tensor<fp16, [99999999999999999999]> x"), "too large"),
    (function(inputs="tensor<fp16, [9223372036854775808]> x"), "too large"),
    (function(inputs="state<int32> x, state<list<int32, 1>> y"), "a state holds a tensor"),
    (function("/* no end"), "this comment has no end"),
])  # fmt: skip
def test_errors_say_what_was_expected(text, reason):
    with pytest.raises(MilSyntaxError, match=reason):
        parse(text)


@pytest.mark.parametrize(("text", "reason"), [
    ("int8(300)", "'300' is not a value of int8"),
    ("uint8(-1)", "'-1' is not a value of uint8"),
    ("int4(8)", "not a value of int4"),
    ("int32(1.5)", "not a value of int32"),
    ("int32(nan)", "not a value of int32"),
    ("bool(2)", "a bool is true or false"),
    ("bool(maybe)", "a bool is true or false"),
    ("fp16(x)", "expected a number and found 'x'"),
    ("fp16(0x)", "not a value of fp16"),
    ("fp16(nan(0x3c00))", "not a value of fp16"),
    ("string(1)", "expected '\"'"),
    ('string("a', "this string has no end"),
    ('string("a\nb")', "this string has no end"),
    ("tensor<int32, [3]>([1, 2])", "is given 2 values in the shape"),
    ("tensor<int32, [2, 2]>([[1, 2], [3]])", "the rows of this tensor differ"),
    ("tensor<int32, [1152921504606846976]>([1])", "is given 1 values"),
    ("tensor<int32, [1152921504606846976, 1152921504606846976, 0]>([])", "is given 0 values"),
    ("tensor<int32, [2]>([1, x])", "expected a number and found 'x'"),
    ("tensor<int32, [2]>(5)", "expected '\\['"),
    ("list<int32, 3>([1])", "holds 3 values and 1 are given"),
    ("tuple<int32>((1, 2))", "holds 1 values and more are given"),
    ("tuple<int32, int32>((1,))", "holds 2 values and 1 are given"),
    ("tuple<int32>((fp16(1)))", "expected a tensor<int32, \\[\\]> and found a tensor<fp16"),
    ("state<fp16>(1)", "has no constant value"),
    ("fp16(BLOBFILE())", "needs both path and offset"),
    ("fp16(BLOBFILE(path = string(\"a\")))", "needs both path and offset"),
    ("fp16(BLOBFILE(path = string(\"a\"), offset = int32(-1)))", "BLOBFILE takes path"),
    ("fp16(BLOBFILE(path = string(\"a\"), size = uint64(1)))", "BLOBFILE takes path"),
    ("fp16(" + "9" * 2000 + ")", "this number has 2,000 characters"),
    ("[1, true]", "a vector without a type"),
    ("[1_0]", "a vector without a type"),
    ("tensor<int32, [1]>([1_0])", "expected ']'"),
    ("tensor<int32, [1]>([\u0661])", "expected a number"),
    ("word", "'word' is not a value"),
])  # fmt: skip
def test_errors_of_constants(text, reason):
    with pytest.raises(MilSyntaxError, match=reason):
        constant(text)


def test_an_error_points_at_its_place():
    with pytest.raises(MilSyntaxError) as caught:
        parse("func main(fp16 x) {\n    fp16 y = relu(x = z);\n} -> (y);", "model.mil")
    error = caught.value
    assert (error.path, error.line, error.column) == ("model.mil", 2, 23)
    assert str(error).split("\n") == [
        "model.mil:2:23: the name 'z' is not defined before this place.",
        "    fp16 y = relu(x = z);",
        "                      ^",
    ]


def test_an_error_in_a_plain_statement_points_at_the_misfit():
    text = 'func main() { fp16 a = const()[val = fp16(1)]; int8 c = const()[name = string("c"), val = int8(300)]; }'
    with pytest.raises(MilSyntaxError) as caught:
        parse(text)
    assert text[caught.value.column - 1 :].startswith("300")


def test_an_error_in_a_vector_points_at_its_element():
    text = "func main() { int8 c = const()[val = tensor<int8, [3]>([1, 300, 2])]; }"
    with pytest.raises(MilSyntaxError, match="'300' is not a value of int8") as caught:
        parse(text)
    assert text[caught.value.column - 1 :].startswith("300")


def test_a_long_line_is_shown_around_the_error():
    with pytest.raises(MilSyntaxError) as caught:
        constant("tensor<int8, [9999]>([" + "1, " * 5000 + "x" + ", 1" * 5000 + "])")
    _, shown, caret = str(caught.value).split("\n")
    assert len(shown) < 140
    assert shown[caret.index("^")] == "x"


@pytest.mark.parametrize("opening", ["[", "(", "{", "tuple<", "list<", "tensor<int32, [1]>([", "tuple<tuple<int32>>(("])
def test_nesting_bombs_are_refused(opening):
    with pytest.raises(MilSyntaxError):
        constant(opening * 100_000)


def test_nested_types_beyond_the_limit_are_refused():
    with pytest.raises(MilSyntaxError, match=f"nested more than {MAX_DEPTH} levels"):
        constant("list<" * 100 + "int32" + ", 1>" * 100 + "(1)")


def test_nested_blocks_beyond_the_limit_are_refused():
    with pytest.raises(MilSyntaxError, match="nested more than"):
        parse(function("fp16 y = cond(pred = x) { " * 1000))


def test_types_values_and_blocks_up_to_the_limit_are_read():
    deep = MAX_DEPTH - 2
    program = parse(function("fp16 y = cond(pred = x) { " * deep + "} -> (x); " * deep))
    assert parse(to_text(program)) == program
    value = "list<" * deep + "int32" + ", 1>" * deep + "(" + "[" * deep + "1" + "]" * deep + ")"
    program = parse(function(f"fp16 c = const()[val = {value}];"))
    assert parse(to_text(program)) == program


def test_tensors_of_more_axes_than_arrays_have_are_refused():
    axes = ", ".join(["1"] * 33)
    with pytest.raises(MilSyntaxError, match="this tensor has 33 axes; the most is 32"):
        parse(f"func main() {{ fp16 c = const()[val = tensor<fp16, [{axes}]>([1])]; }} -> (c);")
