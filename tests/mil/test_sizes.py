"""A function with the sizes of its inputs said: what follows, what stays open, and the same numbers."""

import numpy as np
import pytest

from torchane.errors import CompileError
from torchane.mil import evaluate, parse
from torchane.mil.constants import inline_constants
from torchane.mil.ir import walk
from torchane.mil.sizes import with_sizes

OPEN = """func main(tensor<fp16, [1, ?]> x) {
    tensor<fp16, [1, ?]> a = exp(x = x);
    tensor<fp16, [?, 1]> b = transpose(perm = tensor<int32, [2]>([1, 0]), x = a);
    tensor<fp16, [?, ?]> y = matmul(x = b, y = a, transpose_x = bool(false), transpose_y = bool(false));
} -> (y);"""


def sized(text: str, **shapes: tuple[int, ...]):
    return with_sizes(inline_constants(parse(text)).main, shapes)


def test_sizes_follow_from_those_of_the_inputs():
    function = sized(OPEN, x=(1, 3))
    assert [var.shape for op in function.ops for var in op.outputs] == [(1, 3), (3, 1), (3, 3)]
    assert function.outputs[0].shape == (3, 3)
    assert function.inputs[0].shape == (1, 3)


def test_a_function_of_fixed_sizes_is_given_back_as_it_is():
    function = parse(OPEN.replace("?", "3").replace("[3, 3]> y", "[3, 3]> y")).main
    assert with_sizes(function, {}) is function


def test_what_depends_on_values_stays_open():
    function = sized("func main(tensor<fp16, [?]> x) { tensor<int32, [?, 1]> y = non_zero(x = x); } -> (y);", x=(4,))
    assert function.outputs[0].shape == (None, 1)


def test_what_is_read_in_blocks_has_its_size_there_too():
    function = sized(
        """func main(bool p, tensor<fp16, [?]> x) {
            tensor<fp16, [?]> a = exp(x = x);
            tensor<fp16, [?]> y = cond(pred = p) then() { tensor<fp16, [?]> b = relu(x = a); } -> (b) other() { } -> (a);
        } -> (y);""",
        p=(),
        x=(4,),
    )
    assert [op.inputs[0].shape for op in walk(function.ops) if op.kind.name == "relu"] == [(4,)]
    assert function.ops[1].blocks[1].outputs[0] == function.ops[0].output


@pytest.mark.parametrize(("statement", "said"), [
    ("tensor<fp16, [?]> y = add(x = x, y = z);", r"op 'y' \(add\), with the sizes of these inputs: add"),
    ("tensor<fp16, [4]> y = exp(x = x);", r"declared as tensor<fp16, \[4\]>, and with the sizes of these inputs"),
])  # fmt: skip
def test_sizes_that_do_not_meet_are_refused(statement, said):
    with pytest.raises(CompileError, match=said):
        sized(f"func main(tensor<fp16, [?]> x, tensor<fp16, [?]> z) {{ {statement} }} -> (y);", x=(3,), z=(2,))


def test_no_number_changes():
    x = np.linspace(-1, 1, 5, dtype=np.float16).reshape(1, 5)
    function = inline_constants(parse(OPEN)).main
    before, after = evaluate(function, {"x": x}), evaluate(with_sizes(function, {"x": x.shape}), {"x": x})
    assert before["y"].tobytes() == after["y"].tobytes()
