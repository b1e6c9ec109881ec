"""Constants in statements of their own."""

from torchane.inspect.apart import constants_apart
from torchane.mil import check, parse, to_text
from torchane.mil.constants import inline_constants
from torchane.mil.ir import Literal, walk

TEXT = """program(1.3)
{
    func main<ios18>(tensor<bool, [1]> p, tensor<fp16, [2]> x) {
        tensor<fp16, [2]> y_x = relu(x = x)[name = string("y_x")];
        tensor<fp16, [4]> y = concat(values = (y_x, tensor<fp16, [2]>([1, 2])), axis = int32(0))[name = string("y")];
        tensor<fp16, [4]> z = cond(pred = p)
            () {
                tensor<fp16, [4]> a = add(x = y, y = fp16(1));
            } -> (a)
            () {
                tensor<fp16, [4]> b = add(x = y, y = fp16(2));
            } -> (b);
    } -> (z);
}
"""


def test_every_constant_gets_a_name():
    program = constants_apart(parse(TEXT))
    check(program)
    for op in walk(program.ops):
        args = [item for arg in op.args.values() for item in (arg if isinstance(arg, tuple) else (arg,))]
        assert not any(isinstance(arg, Literal) for arg in args)
    assert [op.output.name for op in walk(program.ops) if op.kind.name == "const"] == [
        "y_values_1",
        "y_axis",
        "a_y",
        "b_y",
    ]


def test_the_constants_go_back_to_where_they_were():
    program = parse(TEXT)
    assert inline_constants(constants_apart(program)) == program


def test_names_that_are_in_use_are_not_given_again():
    text = "func main(tensor<fp16, [2]> y_y) { tensor<fp16, [2]> y = add(x = y_y, y = fp16(1)); } -> (y);"
    program = constants_apart(parse(text))
    assert [op.output.name for op in program.ops] == ["y_y_1", "y"]


def test_a_program_of_named_constants_stays_as_it_is():
    program = constants_apart(parse(TEXT))
    assert to_text(constants_apart(program)) == to_text(program)
