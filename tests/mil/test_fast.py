"""The reference of `fast` arithmetic."""

import numpy as np
import pytest

from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.fast import rounds


def one_product(y, **more):
    b = Builder()
    x = b.input("x", (3, 4))
    return b.program(b.matmul(x=x, y=b.input("y", y) if isinstance(y, tuple) else y, **more))


@pytest.mark.parametrize(("constant", "rounded"), [([0, 1, -1, 0.5], False), ([0, 1, 3, 0], True), ([0, 0, 0, 0], False), ([2**-24, 1024, 0, -2], False)])
def test_a_constant_of_zeros_and_powers_of_two_only_moves_numbers(constant, rounded):
    program = one_product(np.array(constant, np.float16).reshape(4, 1))
    assert rounds(program.ops[-1]) is rounded


def test_factors_are_rounded_to_bf16_and_sums_are_not():
    x = np.full((3, 4), 1 + 2**-8, np.float16)  # a half between 1 and 1 + 2^-7: to even
    y = np.full((4, 2), 1 + 3 * 2**-8, np.float16)  # a half too: to 1 + 2^-6
    got = next(iter(evaluate(one_product((4, 2)), {"x": x, "y": y}, arithmetic="fast").values()))
    np.testing.assert_array_equal(got, np.full((3, 2), 4 * (1 + 2**-6), np.float16))


def test_a_bias_is_not_rounded():
    b = Builder()
    x = b.input("x", (1, 1))
    program = b.program(b.linear(x=x, weight=b.input("w", (1, 1)), bias=b.input("b", (1,))))
    one = np.ones((1, 1), np.float16)
    got = evaluate(program, {"x": one, "w": one, "b": np.array([2**-10], np.float16)}, arithmetic="fast")
    assert next(iter(got.values())) == 1 + 2**-10
