"""The checker names the function, the op, the value and the reason."""

from dataclasses import replace

import numpy as np
import pytest

from torchane.errors import CompileError
from torchane.mil.check import check
from torchane.mil.ir import Blob, Function, Literal, Op, Program, Var
from torchane.mil.kinds import kind_of
from torchane.mil.text import parse
from torchane.mil.types import FP16, FP32, STRING, DictType, ListType, TensorType

X = Var("x", TensorType(FP16, (2,)))


def program(*ops: Op, inputs=(X,), outputs=()) -> Program:
    return Program((Function("main", tuple(inputs), ops, tuple(outputs)),))


def relu(x: Var, name: str, type_=X.type) -> Op:
    return Op(kind_of("relu"), {"x": x}, (Var(name, type_),))


def const(type_, value) -> Op:
    return Op(kind_of("const"), {}, (Var("c", type_),), {"val": Literal(type_, value)})


def test_a_well_formed_program_passes():
    check(
        parse("""func main(tensor<fp16, [2, 4]> x) {
        bool t = const()[val = bool(true)];
        tensor<fp16, [4, 4]> y = matmul(transpose_x = t, transpose_y = bool(false), x = x, y = x);
        tensor<fp16, [2, 8]> z = reshape(x = y, shape = tensor<int32, [2]>([2, 8]));
    } -> (z);""")
    )


def test_every_shared_file_passes(shared_data):
    for path in sorted(shared_data.rglob("*.mil")):
        check(parse(path.read_text(), path.name))


def refused(bad: Program, *words: str) -> None:
    """The checker refuses, and its message holds all these words."""
    with pytest.raises(CompileError) as caught:
        check(bad)
    for word in words:
        assert word in str(caught.value), caught.value


def test_a_value_that_is_not_defined():
    refused(program(relu(Var("z", X.type), "y")), "main: op 'y' (relu): it reads 'z', which is not defined before it")


def test_a_value_that_is_defined_later():
    refused(program(relu(Var("b", X.type), "a"), relu(X, "b")), "op 'a' (relu)", "reads 'b'")


def test_a_value_that_is_read_as_another_type():
    other = Var("x", TensorType(FP32, (2,)))
    refused(program(relu(other, "y", other.type)), "reads 'x' as tensor<fp32, [2]>", "defined as tensor<fp16, [2]>")


def test_a_name_that_is_defined_twice():
    refused(program(relu(X, "y"), relu(X, "y")), "op 'y' (relu): the name 'y' is defined a second time")


def test_an_input_that_is_defined_again():
    refused(program(relu(X, "x")), "'x' is defined a second time")


def test_two_inputs_of_one_name():
    refused(program(inputs=(X, X)), "main: the inputs: the name 'x' is defined a second time")


def test_an_output_that_is_not_defined():
    refused(program(outputs=(Var("y", X.type),)), "main: the outputs of the function", "'y'")


def test_an_output_that_is_given_back_twice():
    refused(program(relu(X, "y"), outputs=(Var("y", X.type),) * 2), "'y' is given back twice")


def test_a_type_that_the_op_does_not_give():
    bad = program(relu(X, "y", TensorType(FP16, (3,))))
    refused(bad, "op 'y' (relu): the result y is declared as tensor<fp16, [3]> and the op gives tensor<fp16, [2]>")


def test_another_element_type():
    refused(program(relu(X, "y", TensorType(FP32, (2,)))), "declared as tensor<fp32, [2]>")


def test_a_size_that_is_not_known_fits_any():
    check(program(relu(X, "y", TensorType(FP16, (None,)))))


def test_the_wrong_number_of_results():
    op = Op(kind_of("relu"), {"x": X}, (Var("a", X.type), Var("b", X.type)))
    refused(program(op), "op 'a' (relu): it gives 1 results and 2 are named")


def test_an_argument_that_the_op_does_not_take():
    refused(program(Op(kind_of("relu"), {"x": X, "y": X}, (Var("a", X.type),))), "op 'a' (relu)", "'y'")


def test_an_argument_that_is_missing():
    refused(program(Op(kind_of("relu"), {}, (Var("a", X.type),))), "op 'a' (relu)", "'x'")


def test_a_constant_argument_that_is_only_known_at_run_time():
    flag = Var("f", TensorType(FP16))
    op = Op(kind_of("matmul"), {"x": X, "y": X, "transpose_x": flag}, (Var("y", X.type),))
    refused(program(op, inputs=(X, flag)), "op 'y' (matmul)", "transpose_x must be a constant", "f is only known")


def test_named_constants_reach_the_type_rules():
    bad = parse("""func main(tensor<fp16, [2, 4]> x) {
        tensor<int32, [2]> s = const()[val = tensor<int32, [2]>([3, 3])];
        tensor<fp16, [3, 3]> z = reshape(x = x, shape = s);
    } -> (z);""")
    refused(bad, "op 'z' (reshape)", "8 elements")


def test_an_unknown_op_keeps_the_types_that_are_written():
    check(program(Op(kind_of("their_op"), {"whatever": X}, (Var("y", TensorType(FP32, (7,))),))))


def test_a_const_needs_a_value():
    refused(program(Op(kind_of("const"), {}, (Var("c", X.type),))), "op 'c' (const)", "an attribute val")


def test_a_const_is_of_its_declared_type():
    op = const(X.type, np.zeros(2, np.float16))
    refused(program(replace(op, outputs=(Var("c", TensorType(FP16, (3,))),))), "constant is a tensor<fp16, [2]>")


@pytest.mark.parametrize(("type_", "value", "reason"), [
    (X.type, np.zeros(3, np.float16), "an array of float16 and shape [3]"),
    (X.type, np.zeros(2, np.float32), "an array of float32"),
    (X.type, 0.5, "is given 0.5"),
    (X.type, "text", "is given 'text'"),
    (TensorType(STRING), ("a",), "is given ('a',)"),
    (TensorType(STRING, (1,)), "a", "is given 'a'"),
    (TensorType(FP16, (None,)), Blob("w.bin", 64), "cannot lie in a weight file"),
    (ListType(X.type), Blob("w.bin", 64), "cannot lie in a weight file"),
    (DictType(X.type, X.type), np.zeros(1), "is given array"),
])  # fmt: skip
def test_a_constant_that_is_not_what_its_type_says(type_, value, reason):
    refused(program(const(type_, value)), "op 'c' (const), attribute val", reason)


def test_a_constant_argument_is_looked_at_too():
    op = Op(kind_of("f"), {"k": (Literal(X.type, 1),)}, (Var("y", X.type),))
    refused(program(op), "op 'y' (f), argument k")


def test_no_function():
    refused(Program(()), "the program has no function")


def test_two_functions_of_one_name():
    function = Function("f", (), (), ())
    refused(Program((function, function)), "f: two functions have this name")


def test_every_function_is_checked():
    bad = Function("second", (X,), (relu(Var("z", X.type), "y"),), ())
    refused(Program((Function("first", (), (), ()), bad)), "second: op 'y'")


# nested blocks and states -----------------------------------------------------------------------------


def nested(body: str, outputs: str = "a") -> Program:
    return parse(f"""func main(bool p, tensor<fp16, [2]> x) {{
        tensor<fp16, [2]> y = their_cond(pred = p) then() {{ {body} }} -> ({outputs});
    }} -> (y);""")


def test_a_block_reads_what_is_around_it():
    check(nested("tensor<fp16, [2]> a = relu(x = x);"))


def test_the_types_in_a_block_are_checked():
    refused(nested("tensor<fp16, [3]> a = relu(x = x);"), "main: op 'a' (relu)", "declared as tensor<fp16, [3]>")


def test_a_block_does_not_define_names_again():
    refused(nested("tensor<fp16, [2]> x = relu(x = x);", "x"), "'x' is defined a second time")


def test_two_blocks_may_define_one_name():
    check(
        parse("""func main(bool p, fp16 x) {
        fp16 y = their_cond(pred = p) { fp16 a = relu(x = x); } -> (a) { fp16 a = exp(x = x); } -> (a);
    } -> (y);""")
    )


def test_what_a_block_defines_is_not_seen_behind_it():
    inner = nested("tensor<fp16, [2]> a = relu(x = x);")
    a = inner.ops[0].blocks[0].outputs[0]
    refused(inner.with_(ops=(*inner.ops, relu(a, "b"))), "op 'b' (relu): it reads 'a', which is not defined")


def test_the_outputs_of_a_block_are_defined():
    inner = nested("", "x")
    block = replace(inner.ops[0].blocks[0], outputs=(Var("q", X.type),))
    refused(
        inner.with_(ops=(replace(inner.ops[0], blocks=(block,)),)),
        "the outputs of op 'y' (their_cond), block then",
        "'q'",
    )


def test_states_are_read_and_written():
    check(
        parse("""func main(state<tensor<fp16, [2]>> kv, tensor<fp16, [2]> v) {
        tensor<fp16, [2]> r = read_state(input = kv);
        write_state(input = kv, data = v);
    } -> (r);""")
    )


def test_a_state_is_read_as_its_own_type():
    bad = parse("""func main(state<tensor<fp16, [2]>> kv) {
        tensor<fp16, [3]> r = read_state(input = kv);
    } -> (r);""")
    refused(bad, "op 'r' (read_state)", "tensor<fp16, [3]>")


def test_what_was_checked_before_is_not_typed_again_but_its_names_are() -> None:
    program = parse("func main(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = relu(x = x); } -> (y);")
    wrong = replace(program.main.ops[0], outputs=(Var("y", TensorType(FP16, (3,))),))
    kept = program.with_(ops=(wrong,), outputs=wrong.outputs)
    with pytest.raises(CompileError, match="is declared as"):
        check(kept)
    check(kept, before=kept)
    twice = kept.with_(ops=(wrong, wrong), outputs=wrong.outputs)
    with pytest.raises(CompileError, match="defined a second time"):
        check(twice, before=kept)
