"""Rules of arithmetic and functions, against torch in float64."""

import numpy as np
import pytest
import torch
from harness import check, run_rule
from hypothesis import given, settings
from hypothesis import strategies as st

from torchane.capture.rules import common
from torchane.capture.rules.elementwise import add, mul, pow_scalar
from torchane.mil.build import Builder
from torchane.mil.types import FP16

aten = torch.ops.aten

X = torch.linspace(-3, 3, 24).reshape(2, 3, 4)
POSITIVE = X.abs() + 0.125
Y = torch.cos(torch.arange(4.0)) + 1.5


@pytest.mark.parametrize(
    "target",
    [
        aten.neg.default, aten.abs.default, aten.exp.default, aten.exp2.default, aten.erf.default, aten.erfc.default,
        aten.sin.default, aten.cos.default, aten.atan.default, aten.sinh.default, aten.cosh.default, aten.expm1.default,
        aten.floor.default, aten.ceil.default, aten.round.default, aten.square.default, aten.sign.default, aten.sgn.default,
    ],
    ids=str,
)  # fmt: skip
def test_function_of_any_number(target):
    check(target, X)


@pytest.mark.parametrize(
    "target",
    [
        aten.sqrt.default, aten.rsqrt.default, aten.reciprocal.default, aten.log.default, aten.log2.default,
        aten.log10.default, aten.log1p.default,
    ],
    ids=str,
)  # fmt: skip
def test_function_of_positive_numbers(target):
    check(target, POSITIVE)


@pytest.mark.parametrize(
    "target", [aten.asin.default, aten.acos.default, aten.atanh.default, aten.tan.default], ids=str
)
def test_function_inside_the_unit_interval(target):
    check(target, X / 4)


@pytest.mark.parametrize(
    "target", [aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default, aten.minimum.default], ids=str
)  # fmt: skip
def test_binary_broadcasts(target):
    check(target, X, Y)


@pytest.mark.parametrize("alpha", [1, 2, -0.5])
@pytest.mark.parametrize("target", [aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor], ids=str)
def test_alpha_scales_the_second_operand(target, alpha):
    check(target, X, Y, alpha=alpha)


@pytest.mark.parametrize("number", [0, 1, -2, 0.3, 1e-3])
def test_numbers_beside_a_tensor(number):
    for target in (
        aten.add.Scalar,
        aten.sub.Scalar,
        aten.mul.Scalar,
        aten.rsub.Scalar,
        aten.add.Tensor,
        aten.mul.Tensor,
    ):
        check(target, X, number)
    if number:
        check(aten.div.Scalar, X, number)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 5, -1, -2, 0.5, -0.5, 1.5, 2.5, 0.3, -1.5])
def test_pow_of_positive_numbers(exponent):
    check(aten.pow.Tensor_Scalar, POSITIVE, exponent)


@pytest.mark.parametrize("exponent", [2, 3, 7, -1, -3])
def test_whole_pow_of_negative_numbers(exponent):
    check(aten.pow.Tensor_Scalar, X, exponent)


def test_high_whole_pow():
    check(aten.pow.Tensor_Scalar, POSITIVE / 2, 10)


def test_number_to_the_power_of_a_tensor():
    check(aten.pow.Scalar, 2, Y)
    check(aten.pow.Scalar, 0.3, X)


def test_addcmul_addcdiv_lerp():
    check(aten.addcmul.default, X, X, Y, value=0.5)
    check(aten.addcdiv.default, X, X, Y, value=-2)
    check(aten.lerp.Tensor, X, X + 1, Y)


@pytest.mark.parametrize("bounds", [(-1, 1), (None, 0.5), (0, None), (2, -2)])
def test_clamp(bounds):
    check(aten.clamp.default, X, *bounds)


def test_clamp_by_tensors():
    check(aten.clamp.Tensor, X, Y - 2, Y)
    check(aten.clamp_min.default, X, 0.25)
    check(aten.clamp_max.default, X, 0.25)
    check(aten.hardtanh.default, X)


@given(st.floats(-(2.0**-15), 2.0**-15).filter(lambda f: abs(f) > 1e-30))
@settings(max_examples=40, deadline=None)
def test_factor_too_small_for_fp16_is_applied_in_steps(factor):
    (found,) = run_rule(aten.mul.Scalar, (torch.tensor([6e4]), factor), fp16=True)
    wanted = np.float16(6e4).astype(float) * factor
    assert abs(found[0] - wanted) <= abs(wanted) * 2.0**-9 + 2.0**-24


def test_factor_too_large_for_fp16_is_applied_in_steps():
    (found,) = run_rule(aten.mul.Scalar, (torch.tensor([1e-4]), 3e6), fp16=True)
    assert abs(found[0] - 300) < 1


def test_guard_against_zero_survives_fp16():
    (found,) = run_rule(aten.add.Scalar, (torch.zeros(1), 1e-12), fp16=True)
    assert found[0] > 0


def test_minus_infinity_as_a_factor_stays_finite():
    (found,) = run_rule(aten.mul.Scalar, (torch.tensor([0.0, 1.0]), torch.finfo(torch.float32).min), fp16=True)
    assert found.tolist() == [0.0, -65504.0]


def test_adding_zero_and_multiplying_by_one_write_nothing():
    b = Builder()
    x = b.input("x", (3,))
    assert add(b, x, 0) is x and mul(b, x, 1) is x and pow_scalar(b, x, 1) is x
    assert b.ops == []


def test_full_constant_becomes_a_scalar_only_where_the_shape_stays():
    b = Builder()
    x = b.input("x", (3, 1))
    mul(b, x, common.filled((3, 1), 2, FP16))
    wide = mul(b, x, common.filled((3, 4), 2, FP16))
    assert b.ops[0].args["y"].shape == ()
    assert wide.shape == (3, 4)


@pytest.mark.parametrize("x", [1e-7, 3e-5, 1e-4, 4e-4, 7e-4, 0.01, 0.5, 100.0])
def test_log1p_of_a_small_number_is_not_lost(x):
    (found,) = run_rule(aten.log1p.default, (torch.tensor([x]),), fp16=True)
    wanted = np.log1p(np.float64(np.float16(x)))
    assert abs(float(found[0]) - wanted) <= 2 * 2.0**-11 * wanted + 2.0**-24
