import numpy as np
import pytest
from golden import main, moves, same_bits, same_text

from torchane import chips
from torchane.mil.evaluate import evaluate
from torchane.passes.decompose_arithmetic import RULES, decompose_arithmetic

#: The call and whether it keeps every bit.
CALLS = {
    "rsqrt(x = x, epsilon = fp16(0.001))": False,
    "rsqrt(x = x)": False,
    "inverse(x = x, epsilon = fp16(0.001))": False,
    "square(x = x)": True,
    "abs(x = x)": True,
    "minimum(x = x, y = w)": True,
    "minimum(x = x, y = fp16(1))": True,
    "minimum(x = fp16(1), y = x)": True,
    "minimum(x = x, y = tensor<fp16, [3]>([1, 2, 0]))": True,
    "clip(x = x, alpha = fp16(0.75), beta = fp16(1.5))": True,
    "relu(x = x)": True,
    "threshold(x = x, alpha = fp16(1))": True,
    "pow(x = x, y = fp16(0.5))": True,
    "pow(x = x, y = fp16(-1))": True,
}


def test_every_rule_is_tried():
    assert {call.split("(")[0] for call in CALLS} | {"linear"} == set(RULES) | {"pow"}


@pytest.mark.parametrize("call", CALLS)
def test_an_op_keeps_its_numbers(call):
    program = main(f"(tensor<fp16, [2, 3]> x, tensor<fp16, [3]> w) {{ tensor<fp16, [2, 3]> y = {call}; }} -> (y)")
    after = decompose_arithmetic(program)
    assert after.ops != program.ops
    # the default epsilon of rsqrt, 1e-12, is nothing to fp16
    assert moves(program, after, low=0.5, high=3) < 1e-10
    assert not CALLS[call] or same_bits(program, after)


def test_rsqrt_is_a_power():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = rsqrt(x = x, epsilon = fp16(0.5)); } -> (y)")
    golden = "(tensor<fp16, [2]> x) { tensor<fp16, [2]> add = add(x = x, y = fp16(0.5)); tensor<fp16, [2]> y = pow(x = add, y = fp16(-0.5)); } -> (y);"
    assert same_text(decompose_arithmetic(program), golden)


@pytest.mark.parametrize("epsilon", ["", ", epsilon = fp16(0)", ", epsilon = fp16(1e-9)"])
def test_an_epsilon_that_fp16_cannot_hold_is_left_out(epsilon):
    program = main(f"(tensor<fp16, [2]> x) {{ tensor<fp16, [2]> y = rsqrt(x = x{epsilon}); }} -> (y)")
    assert [op.kind.name for op in decompose_arithmetic(program).ops] == ["pow"]


def test_linear_is_a_matmul_and_a_sum():
    program = main("""(tensor<fp16, [2, 3]> x) {
        tensor<fp16, [2, 2]> y = linear(x = x, weight = tensor<fp16, [2, 3]>([[1, 2, 3], [4, 5, 6]]), bias = tensor<fp16, [2]>([1, 2]));
    } -> (y)""")
    after = decompose_arithmetic(program)
    assert [op.kind.name for op in after.ops] == ["matmul", "add"]
    assert moves(program, after) < 1e-12


@pytest.mark.parametrize("exponent", ["fp16(-0.5)", "fp16(2)", "tensor<fp16, [2, 2]>([[0.5, 0.5], [0.5, 0.5]])"])
def test_other_powers_stay(exponent):
    shape = [2, 2] if "tensor" in exponent else [2]
    program = main(f"(tensor<fp16, [2]> x) {{ tensor<fp16, {shape}> y = pow(x = x, y = {exponent}); }} -> (y)")
    assert decompose_arithmetic(program) == program


def test_the_minimum_keeps_the_sign_of_infinity():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = minimum(x = x, y = fp16(1)); } -> (y)")
    found = evaluate(decompose_arithmetic(program), {"x": np.array([np.inf, -np.inf])})["y"]
    assert found.tolist() == [1.0, -np.inf]


def test_a_chip_without_a_root_gets_a_power():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = sqrt(x = x); tensor<fp16, [2]> z = pow(x = y, y = fp16(0.5)); } -> (z)")
    after = decompose_arithmetic(program, chips.load("m1"))
    assert [op.kind.name for op in after.ops] == ["pow", "pow"]
    assert moves(program, after, low=0.5) < 1e-12
