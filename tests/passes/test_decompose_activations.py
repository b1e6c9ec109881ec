import numpy as np
import pytest
from golden import main, moves, same_text

from torchane import chips
from torchane.mil.evaluate import evaluate
from torchane.passes.decompose_activations import RULES, decompose_activations
from torchane.passes.decompose_arithmetic import decompose_arithmetic
from torchane.passes.lower_bools import lower_bools

PORTABLE = {"add", "sub", "mul", "real_div", "maximum", "exp", "tanh", "sigmoid", "sqrt", "pow"}

#: The call, and how far it may move anywhere on [-8, 8], in exact numbers (constants rounded to fp16: 2^-11 of a value).
CALLS = {
    "silu(x = x)": 1e-12,
    "erf(x = x)": 5e-4,
    'gelu(x = x, mode = string("EXACT"))': 1e-3,
    'gelu(x = x, mode = string("TANH_APPROXIMATION"))': 5e-4,
    'gelu(x = x, mode = string("SIGMOID_APPROXIMATION"))': 1e-3,
    "softplus(x = x)": 4e-4,
    "softsign(x = x)": 1e-12,
    "relu6(x = x)": 1e-12,
    "leaky_relu(x = x, alpha = fp16(0.25))": 1e-12,
    "leaky_relu(x = x, alpha = fp16(-1.5))": 1e-12,
    "prelu(x = x, alpha = tensor<fp16, [3]>([0.5, 0.25, -1]))": 1e-12,
    "elu(x = x, alpha = fp16(0.5))": 1e-12,
    "sigmoid_hard(x = x, alpha = fp16(0.25), beta = fp16(0.5))": 1e-12,
    "scaled_tanh(x = x, alpha = fp16(2), beta = fp16(0.5))": 1e-12,
    "clamped_relu(x = x, alpha = fp16(0.5), beta = fp16(3))": 1e-12,
    "linear_activation(x = x, alpha = fp16(0.5), beta = fp16(3))": 1e-12,
    "thresholded_relu(x = x, alpha = fp16(0.5))": 1e-12,
    "exp2(x = x)": 8 * 2**-11,
}


def test_every_rule_is_tried():
    assert {call.split("(")[0] for call in CALLS} == set(RULES)


@pytest.mark.parametrize("call", CALLS)
def test_an_activation_keeps_its_numbers_and_needs_portable_ops_only(call):
    program = main(f"(tensor<fp16, [2, 3, 500]> x) {{ tensor<fp16, [2, 3, 500]> y = {call}; }} -> (y)")
    after = decompose_arithmetic(lower_bools(decompose_activations(program)))
    assert {op.kind.name for op in after.ops} <= PORTABLE
    assert moves(program, after, low=-8, high=8) < CALLS[call]


@pytest.mark.parametrize("kind", ["silu", "gelu", "erf", "softplus"])
def test_large_values_end_where_they_should_in_fp16(kind):
    program = main(f"(tensor<fp16, [4]> x) {{ tensor<fp16, [4]> y = {kind}(x = x); }} -> (y)")
    x = {"x": np.array([-60000, -300, 300, 60000], np.float16)}
    after = decompose_arithmetic(decompose_activations(program))
    with np.errstate(over="ignore"):
        assert np.array_equal(evaluate(after, x)["y"], evaluate(program, x)["y"])


def test_silu_is_a_product_with_a_sigmoid():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = silu(x = x); } -> (y)")
    golden = "(tensor<fp16, [2]> x) { tensor<fp16, [2]> sigmoid = sigmoid(x = x); tensor<fp16, [2]> y = mul(x = x, y = sigmoid); } -> (y);"
    assert same_text(decompose_activations(program), golden)


def test_a_chip_may_prefer_silu_by_exp():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = silu(x = x); } -> (y)")
    after = decompose_activations(program, chips.load("m5"))
    assert [op.kind.name for op in after.ops] == ["mul", "exp", "add", "real_div"]
    assert moves(program, after, low=-20, high=20) < 1e-12


def test_what_the_chip_takes_stays():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = tanh(x = x); tensor<fp16, [2]> z = erf(x = y); } -> (z)")
    assert decompose_activations(program, chips.load("m4")) == program
    assert decompose_activations(program, chips.load("portable")) != program
