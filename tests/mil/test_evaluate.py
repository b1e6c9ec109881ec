"""The evaluator: what it is handed, how it rounds, and where another arithmetic comes in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchane.errors import CompileError, UsageError
from torchane.mil.build import Builder
from torchane.mil.evaluate import EXACT, Arithmetic, evaluate
from torchane.mil.formats import narrowed
from torchane.mil.ir import Blob, Function, Literal, Op, Program, Var, literal
from torchane.mil.kinds import KINDS, kind_of
from torchane.mil.ops.state import State
from torchane.mil.text import parse
from torchane.mil.types import FP16, FP32, INT32, STRING, DType, StateType, TensorType


def double(name: str = "main") -> Program:
    builder = Builder()
    return builder.program(builder.mul(x=builder.input("x", (2,)), y=2.0, name="y"), name=name)


def test_exact_rounds_every_result_once_to_its_type():
    builder = Builder()
    x = builder.input("x", (1,))
    total = builder.add(x=x, y=1.0, name="total")
    program = builder.program(builder.sub(x=total, y=1.0, name="y"))
    tiny = {"x": np.array([2.0**-11])}
    assert evaluate(program, tiny)["y"] == 0  # 1 + 2**-11 is halfway, and goes to the even neighbour 1
    assert evaluate(program, tiny, arithmetic="ideal")["y"] == 2.0**-11


def test_ideal_keeps_float64_from_input_to_output():
    given = evaluate(double(), {"x": np.array([1 / 3, 1e300])}, arithmetic="ideal")["y"]
    assert given.dtype == np.float64
    assert given.tolist() == [2 / 3, 2e300]


def test_exact_gives_the_types_of_the_program():
    given = evaluate(double(), {"x": np.array([1 / 3, 65504])})["y"]
    assert given.dtype == np.float16
    np.testing.assert_array_equal(given, np.array([2 * np.float16(1 / 3), np.inf], np.float16))


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=2))
def test_exact_products_are_those_of_numpy_in_fp16(values):
    x = np.array(values, np.float16)
    np.testing.assert_array_equal(evaluate(double(), {"x": x})["y"], x * np.float16(2))


def test_constants_of_every_kind_arrive():
    text = Literal(TensorType(STRING), "fp32")
    builder = Builder()
    x = builder.input("x", (1,))
    named = Op(kind_of("const"), {}, (Var("dtype", text.type),), {"val": text})
    cast = Op(KINDS["cast"], {"x": x, "dtype": named.output}, (Var("y", TensorType(FP32, (1,))),))
    program = Program((Function("main", (x,), (named, cast), cast.outputs),))
    assert evaluate(program, {"x": np.array([0.5])})["y"].dtype == np.float32


def test_a_constant_that_is_given_back_is_its_value():
    const = Op(kind_of("const"), {}, (Var("c", TensorType(INT32, (2,))),), {"val": literal((3, 4))})
    program = Program((Function("main", (), (const,), const.outputs),))
    assert evaluate(program, {})["c"].tolist() == [3, 4]


def test_bf16_is_carried_as_bits_and_computed_as_numbers():
    builder = Builder()
    x = builder.input("x", (2,), DType.BF16)
    program = builder.program(builder.add(x=x, y=x, name="y"))
    bits = narrowed(np.array([1.5, -0.25]), DType.BF16)
    np.testing.assert_array_equal(evaluate(program, {"x": bits})["y"], narrowed(np.array([3, -0.5]), DType.BF16))
    assert evaluate(program, {"x": bits}, arithmetic="ideal")["y"].tolist() == [3, -0.5]


def test_a_function_is_chosen_by_name():
    program = Program((*double("first").functions, *double("main").functions))
    assert evaluate(program, {"x": np.ones(2)}, function="first")["y"].tolist() == [2, 2]
    with pytest.raises(UsageError, match="no function 'second'; it has first, main"):
        evaluate(program, {"x": np.ones(2)}, function="second")


def test_an_input_of_unknown_size_takes_any():
    builder = Builder()
    x = builder.input("x", TensorType(FP16, (None, 2)))
    program = builder.program(builder.relu(x=x, name="y"))
    assert evaluate(program, {"x": -np.ones((5, 2))})["y"].shape == (5, 2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"main: no value for the input x \(tensor<fp16, \[2\]>\)"),
        ({"x": np.ones(3)}, r"main: the input x is tensor<fp16, \[2\]> and was given the shape \(3,\)"),
        ({"x": np.ones((1, 2))}, "main: the input x is"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, message):
    with pytest.raises(UsageError, match=message):
        evaluate(double(), inputs)


def test_an_unknown_arithmetic_is_named():
    with pytest.raises(UsageError, match="no arithmetic is called 'quick'; there are exact, ideal"):
        evaluate(double(), {"x": np.ones(2)}, arithmetic="quick")


def test_a_constant_that_lies_in_a_file_is_named():
    builder = Builder()
    x = builder.input("x", (2,))
    weight = Literal(TensorType(FP16, (2,)), Blob("@model_path/weights/w.bin", 64))
    program = builder.program(builder.add(x=x, y=weight, name="y"))
    with pytest.raises(CompileError, match=r"y: a constant lies in @model_path/weights/w.bin at 64.*mil.load"):
        evaluate(program, {"x": np.ones(2)})


def test_an_op_that_nobody_knows_is_named():
    x = Var("x", TensorType(FP16, (2,)))
    op = Op(kind_of("new_op"), {"x": x}, (Var("y", x.type),))
    with pytest.raises(CompileError, match="new_op: torchane has no NumPy rule for this op"):
        evaluate(Program((Function("main", (x,), (op,), op.outputs),)), {"x": np.ones(2)})


def test_another_arithmetic_replaces_the_rules_it_names():
    """As an engine's own would: a table for one op, and its way of rounding for all."""
    seen = []

    def table(op, args):
        seen.append((op.output.type, op.kind.name))
        return (np.full(args["x"].shape, 0.25),)

    builder = Builder()
    x = builder.input("x", (2,))
    program = builder.program(builder.add(x=builder.sigmoid(x=x), y=x, name="y"))
    saturating = Arithmetic(
        "saturating",
        stores=lambda array, dtype: narrowed(np.clip(array, -32768, 32768), dtype),
        rules={"sigmoid": table},
    )
    assert evaluate(program, {"x": np.array([1, 60000])}, arithmetic=saturating)["y"].tolist() == [1.25, 32768]
    assert seen == [(TensorType(FP16, (2,)), "sigmoid")]
    assert evaluate(program, {"x": np.array([1, 60000])}, arithmetic=EXACT)["y"][1] == 60000


def test_a_state_of_another_shape_is_refused():
    held = Var("held", StateType(TensorType(FP16, (2,))))
    op = Op(KINDS["read_state"], {"input": held}, (Var("y", held.type.tensor),))
    program = Program((Function("main", (held,), (op,), op.outputs),))
    with pytest.raises(UsageError, match=r"main: the input held is state<tensor<fp16, \[2\]>> and was given"):
        evaluate(program, {}, states={"held": np.ones(3)})
    assert KINDS["read_state"].evaluate({"input": State(np.ones(2))})[0].tolist() == [1, 1]


def test_a_result_that_no_memory_holds_is_refused_before_it_is_computed():
    text = """func main(fp16 x) {
        tensor<fp16, [1048576, 1048576]> y = fill(shape = tensor<int32, [2]>([1048576, 1048576]), value = fp16(0));
    } -> (y);"""
    with pytest.raises(CompileError, match=r"y \(fill\): its result, .* takes 8,796,093,022,208 bytes"):
        evaluate(parse(text), {"x": np.float16(0)})


def test_a_state_of_no_fixed_size_needs_its_first_value():
    program = parse("func main(state<tensor<fp16, [?]>> s) { tensor<fp16, [?]> y = read_state(input = s); } -> (y);")
    with pytest.raises(UsageError, match="the state s is .* of no fixed size"):
        evaluate(program, {})
    assert evaluate(program, {}, states={"s": np.ones(3)})["y"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("text", "inputs", "said"), [
    ("tensor<int32, [7, 1]> y = non_zero(x = x);", {"x": np.ones(3)}, r"declared as tensor<int32, \[7, 1\]> and came out in the shape \[3, 1\]"),
    ("tensor<fp16, [?]> y = add(x = x, y = z);", {"x": np.ones(3), "z": np.ones(2)}, r"operands do not fit one another \(x \[3\], z \[2\]\)"),
])  # fmt: skip
def test_what_only_the_run_can_tell_is_told_by_op_and_value(text, inputs, said):
    ports = ", ".join(f"tensor<fp16, [?]> {name}" for name in inputs)
    with pytest.raises(CompileError, match=said):
        evaluate(parse(f"func main({ports}) {{ {text} }} -> (y);"), inputs)


def test_a_list_cannot_be_handed_in():
    program = parse("func main(list<fp16, 2> ls) { int32 y = list_length(ls = ls); } -> (y);")
    with pytest.raises(UsageError, match="tensors only can be handed in"):
        evaluate(program, {"ls": np.ones(2)})


@pytest.mark.parametrize(("inputs", "states", "said"), [
    ({"x": np.array(["a"])}, {}, "x is tensor<fp16, [1]> and was given <U1 values"),
    ({"x": np.array([1j])}, {}, "complex128 values"),
    ({"x": np.array([None])}, {}, "object values"),
    ({"x": np.ones(1), "z": 1}, {}, "main has no input 'z'; it has s, x"),
    ({"x": np.ones(1)}, {"t": np.ones(1)}, "main has no input 't'"),
])  # fmt: skip
def test_what_is_no_number_or_no_input_is_refused(inputs, states, said):
    program = parse("func main(tensor<fp16, [1]> x, state<tensor<fp16, [1]>> s) { } -> (x);")
    with pytest.raises(UsageError, match=said.replace("[", r"\[")):
        evaluate(program, inputs, states=states)


def test_one_of_several_functions_is_chosen_by_name():
    program = parse("func a(fp16 x) { } -> (x); func b(fp16 x) { } -> (x);")
    assert evaluate(program, {"x": 2.0}, function="b")["x"] == 2
    with pytest.raises(UsageError, match="has no function main; it has a, b"):
        evaluate(program, {"x": 2.0})


@pytest.mark.parametrize(("statement", "said"), [
    ("fp16 y = const()[value = fp16(1)];", "a const has one result and an attribute val"),
    ("fp16 y, fp16 z = relu(x = x);", "it gives 1 results and 2 are named"),
])  # fmt: skip
def test_a_program_that_nobody_checked_is_refused_where_it_fails(statement, said):
    with pytest.raises(CompileError, match=said):
        evaluate(parse(f"func main(fp16 x) {{ {statement} }} -> (y);"), {"x": 1.0})
