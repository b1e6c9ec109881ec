"""Element-wise functions of one operand, against coremltools and PyTorch."""

import numpy as np
import pytest
import torch
from second_opinion import assert_agrees_with_coremltools, ours

from torchane.errors import CompileError
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.kinds import KINDS
from torchane.mil.types import BOOL, FP16, FP32, INT32, TensorType

X = np.linspace(-0.95, 0.95, 24).reshape(2, 3, 4).astype(np.float32)
WIDE = np.linspace(-6, 6, 25).astype(np.float32)
I = np.arange(-4, 5).astype(np.int32)
ANY = ["exp", "ceil", "floor", "round", "sin", "cos", "tan", "atan", "sinh", "cosh", "tanh", "erf", "abs", "sign", "square", "exp2"]  # fmt: skip
CASES = [
    *((op, {"x": WIDE}) for op in ANY),
    *((op, {"x": X}) for op in ("asin", "acos", "atanh")),
    *((op, {"x": I}) for op in ("abs", "sign", "square")),
    *((op, {"x": np.abs(WIDE) + 0.1}) for op in ("sqrt", "log", "rsqrt", "inverse")),
    *((op, {"x": np.abs(WIDE), "epsilon": 0.25}) for op in ("log", "rsqrt", "inverse")),
    ("logical_not", {"x": X > 0}),
    ("clip", {"x": WIDE, "alpha": -1.5, "beta": 2.0}),
    ("threshold", {"x": WIDE, "alpha": 0.5}),
]


@pytest.mark.parametrize(("op", "args"), CASES)
def test_agrees_with_coremltools(op, args):
    assert_agrees_with_coremltools(op, args)


def test_halves_are_rounded_to_the_even_neighbour():
    _, (value,) = ours("round", x=np.array([0.5, 1.5, 2.5, -0.5], np.float16))
    assert value.tolist() == [0, 2, 2, 0]


def test_erf_is_exact_in_float64():
    builder = Builder()
    x = builder.input("x", (25,), FP32)
    program = builder.program(builder.erf(x=x, name="y"))
    given = evaluate(program, {"x": WIDE}, arithmetic="ideal")["y"]
    np.testing.assert_allclose(given, torch.erf(torch.tensor(WIDE, dtype=torch.float64)).numpy(), 1e-15)


@pytest.mark.parametrize(("dtype", "floor"), [(np.float16, -np.inf), (np.float32, np.log(np.float32(1e-45)))])
def test_the_default_epsilon_of_log_is_rounded_to_the_type_of_x(dtype, floor):
    _, (value,) = ours("log", x=np.zeros(1, dtype))
    np.testing.assert_allclose(value, floor, 1e-6)


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("exp", {"x": TensorType(INT32, (2,))}, "exp: x is tensor<int32, .*must hold floats"),
        ("abs", {"x": TensorType(BOOL)}, "abs: x is .*must hold numbers"),
        ("logical_not", {"x": TensorType(FP16)}, "logical_not: .*must hold bools"),
        ("clip", {"x": TensorType(FP16), "alpha": 2.0, "beta": 1.0}, "clip: alpha 2.0 is above beta 1.0"),
        ("log", {"x": TensorType(FP16), "epsilon": "no"}, "log: epsilon is 'no'. Its signature"),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
