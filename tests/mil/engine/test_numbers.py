"""fp16 as the engine reads and writes it, against the measured cases of 751K and against exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchane.mil.engine.numbers import decoded, exponents, halves

ALL = np.arange(65536, dtype=np.uint16).view(np.float16)


@pytest.mark.parametrize(("bits", "value"), [(0x7C00, 65536.0), (0x7E00, 98304.0), (0x7FFF, 131008.0), (0xFC00, -65536.0)])
def test_exponent_31_is_a_number(bits, value):
    assert decoded(np.array(bits, np.uint16).view(np.float16)) == value


def test_every_finite_number_comes_back():
    finite = ALL[np.isfinite(ALL)]
    assert (halves(decoded(finite)).view(np.uint16) == finite.view(np.uint16)).all()


@pytest.mark.parametrize(
    ("value", "stored"),
    [(2049, 2050), (-2049, -2050), (4098, 4100), (1 + 2**-11, 1 + 2**-10), (2**-25, 2**-24), (65519.9, 65504), (65520, np.inf)],
)
def test_halves_leave_zero(value, stored):
    assert halves(np.array(float(value))) == stored


def test_what_is_no_number_becomes_zero():
    assert halves(np.array(np.nan)) == 0


@given(st.floats(-70000, 70000))
def test_the_nearest_number_is_taken(value):
    stored = halves(np.array(value))
    finite = ALL[np.isfinite(ALL)].astype(np.float64)
    if abs(value) >= 65520:
        assert stored == np.copysign(np.inf, value)
        return
    best = finite[np.abs(finite - value).argmin()]
    distance = abs(Fraction(float(stored)) - Fraction(value))
    assert distance <= abs(Fraction(float(best)) - Fraction(value))
    assert abs(float(stored)) >= abs(float(best)) or distance < abs(Fraction(float(best)) - Fraction(value))


def test_ties_can_go_to_even():
    assert halves(np.array(2049.0), "even") == 2048


def test_subnormal_numbers_have_the_lowest_exponent():
    assert exponents(np.array([0.0, 2.0**-24, 2.0**-14, 1.99, 65536.0])).tolist() == [-14, -14, -14, 0, 16]
