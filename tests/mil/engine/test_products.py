"""Sums of products against what an M4 and an M6 gave (751K, notes/numerics.md) and against exact fractions."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchane.mil.engine.numbers import decoded, halves
from torchane.mil.engine.products import sums
from torchane.mil.engine.settings import Products

RULE = Products()
INF = np.inf


def dot(x, w, bias=0.0, rule=RULE):
    """One sum, as the fp16 number that it becomes."""
    x, w = (decoded(np.array(v, np.float16)) for v in (x, w))
    return float(halves(sums(x[None], w[:, None], rule, bias))[0, 0])


@pytest.mark.parametrize(
    ("x", "out"),
    [
        ([32752], 32752), ([16384, 16376], 32768), ([16384, 16384], INF), ([16384, 16384, -16384, -16384, 1], INF),
        ([16384, 2**-16, -16384], 2**-16), ([16384, 2**-18, -16384], 0), ([2**-17], 2**-16), ([2**-18], 0),
        ([2048, 1], 2050), ([-4096, -2], -4100), ([-16384, -16384], -INF), ([65504], INF), ([np.inf], INF), ([np.nan], INF),
    ],
)  # fmt: skip
def test_sums_with_weights_of_one_are_as_measured(x, out):
    assert dot(x, [1.0] * len(x)) == out


@pytest.mark.parametrize(
    ("w", "x", "units"),
    [
        (1.875 * 2**-3, 1.875 * 2**-14, 0), (1.99 * 2**-3, 1.99 * 2**-14, 0), (1.5 * 2**-4, 1.9 * 2**-13, 0),
        (1.9375 * 2**-5, 1.9375 * 2**-12, 0), (0.2, 0.99 * 2**-14, 0), (0.125, 1.5 * 2**-13, 2), (0.25, 0.5 * 2**-14, 1),
    ],
)  # fmt: skip
def test_small_products_are_dropped_by_their_exponents(w, x, units):
    assert dot([x], [w]) == units * 2.0**-16


@pytest.mark.parametrize(
    ("bias", "x", "out"),
    [
        (-16384, [16384, 16384], 16384), (-16384, [16384] * 3, INF), (32, [32752], INF), (32, [32736], INF),
        (2**-20, [0], 0), (2**-17, [0], 2**-16), (2**-17, [2**-17], 2**-15), (1000.5, [0.25], 1001),
    ],
)  # fmt: skip
def test_a_bias_starts_the_sum(bias, x, out):
    assert dot(x, [1.0] * len(x), bias) == out


@pytest.mark.parametrize("scale", [1, 16, 256, 4096])
def test_the_range_does_not_follow_the_weights(scale):
    assert dot([16384 / scale] * 2, [scale] * 2) == INF
    assert dot([16368 / scale] * 2, [scale] * 2) == 32736


def test_an_infinity_is_a_number_to_multiply():
    assert dot([np.inf], [2**-12]) == 16


def test_a_sum_is_never_minus_zero():
    assert not np.signbit(dot([-0.0, -(2**-20)], [1.0, 1.0]))


def by_fractions(x, w, rule=RULE):
    unit = Fraction(1, 1 << 16)
    total = Fraction(0)
    for a, b in zip(x.tolist(), w.tolist()):
        ea, eb = (max(int(np.floor(np.log2(abs(v)))), -14) if v else -14 for v in (a, b))
        product = Fraction(a) * Fraction(b)
        if ea + eb < -16:
            continue
        steps = abs(product) / unit
        steps = int(steps) + (steps - int(steps) >= Fraction(1, 2))
        total += steps * unit * (1 if product > 0 else -1)
        if abs(total) >= 32768:
            return np.copysign(np.inf, float(total))
    return float(total)


@settings(max_examples=60)
@given(st.data())
def test_sums_equal_exact_fractions(data):
    k = data.draw(st.integers(1, 12))
    bits = st.lists(st.integers(0, 0xFFFF), min_size=k, max_size=k)
    x, w = (decoded(np.array(data.draw(bits), np.uint16).view(np.float16)) for _ in range(2))
    low = data.draw(st.integers(-12, 0))  # smaller weights: sums that stay in range are met too
    w = decoded(halves(np.ldexp(w, low)))
    assert sums(x[None], w[:, None], RULE)[0, 0] == by_fractions(x, w)


def test_other_settings_change_what_happens_at_the_limit():
    assert dot([16384, 16384], [1, 1], rule=replace(RULE, overflow="saturate")) == 32768
    assert dot([16384, 16384, -16384], [1, 1, 1], rule=replace(RULE, overflow="saturate")) == 16384
    assert dot([16384, 16384], [1, 1], rule=replace(RULE, overflow="wrap")) == -32768
    assert dot([2.0**-15], [1], rule=replace(RULE, subnormals="zero")) == 0
    assert dot([2.0**-20], [1], rule=replace(RULE, fraction_bits=None)) == 2.0**-20
