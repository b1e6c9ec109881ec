import pytest
from golden import main, same_text

from torchane.errors import CompileError
from torchane.passes.settle_outputs import settle_outputs


def test_an_output_that_others_read_comes_out_of_an_identity():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = exp(x = x); tensor<fp16, [2]> z = add(x = y, y = y); } -> (y, z)")
    golden = """(tensor<fp16, [2]> x) {
        tensor<fp16, [2]> y_1 = exp(x = x);
        tensor<fp16, [2]> z = add(x = y_1, y = y_1);
        tensor<fp16, [2]> y = identity(x = y_1);
    } -> (y, z);"""
    assert same_text(settle_outputs(program), golden)
    assert settle_outputs(settle_outputs(program)) == settle_outputs(program)


def test_an_output_listed_twice_gets_a_second_value():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = exp(x = x); } -> (y, y)")
    golden = "(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = exp(x = x); tensor<fp16, [2]> y_1 = identity(x = y); } -> (y, y_1);"
    assert same_text(settle_outputs(program), golden)


def test_an_output_that_others_read_and_that_is_listed_twice():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = exp(x = x); tensor<fp16, [2]> z = exp(x = y); } -> (y, z, y)")
    golden = """(tensor<fp16, [2]> x) {
        tensor<fp16, [2]> y_1 = exp(x = x);
        tensor<fp16, [2]> z = exp(x = y_1);
        tensor<fp16, [2]> y = identity(x = y_1);
        tensor<fp16, [2]> y_2 = identity(x = y_1);
    } -> (y, z, y_2);"""
    assert same_text(settle_outputs(program), golden)


def test_an_input_that_is_returned_is_copied():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = exp(x = x); } -> (x, y)")
    golden = "(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = exp(x = x); tensor<fp16, [2]> x_1 = identity(x = x); } -> (x_1, y);"
    assert same_text(settle_outputs(program), golden)


def test_outputs_of_their_own_stay():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = exp(x = x); tensor<fp16, [2]> z = tanh(x = x); } -> (y, z)")
    assert settle_outputs(program) is program


def test_a_program_that_only_returns_its_input_is_refused():
    with pytest.raises(CompileError, match="the only output is the input x: there is nothing to compute"):
        settle_outputs(main("(tensor<fp16, [2]> x) { } -> (x)"))
