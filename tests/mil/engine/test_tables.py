"""Functions by table against dense sweeps on an M6: the largest errors and where they lie (751K, f3_lut_m6, lut_ulp_m6)."""

import math

import numpy as np
import pytest

from torchane.mil.build import Builder
from torchane.mil.engine import Settings, engine
from torchane.mil.evaluate import evaluate
from torchane.mil.types import FP16, TensorType

ALL = np.arange(65536, dtype=np.uint16).view(np.float16)
FINITE = np.sort(ALL[np.isfinite(ALL)])
erf = np.vectorize(math.erf, otypes=[np.float64])


def computed(name, x, settings=None, **args):
    b = Builder()
    var = b.input("x", TensorType(FP16, x.shape))
    result = getattr(b, name)(x=var, **args)
    return evaluate(b.program(result), {"x": x}, arithmetic=engine(settings or Settings()))[result.name]


def errors(name, exact, low, high):
    """Over all fp16 numbers between: the largest error, and the largest in steps of fp16 with where it lies.
    inverse is swept over positive numbers, as it was there: its epsilon makes it lopsided."""
    x = FINITE[(np.abs(FINITE) >= low) & (FINITE <= high) & (FINITE >= (low if name == "inverse" else -high))]
    with np.errstate(all="ignore"):
        want = exact(x.astype(np.float64))
    x, want = x[np.isfinite(want)], want[np.isfinite(want)]
    error = np.abs(computed(name, x).astype(np.float64) - want)
    steps = error / np.spacing(np.abs(want).astype(np.float16)).astype(np.float64)
    return error.max(), steps.max(), abs(float(x[steps.argmax()]))


@pytest.mark.parametrize(
    ("name", "exact", "low", "high", "largest"),
    [
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), 0, 9.9, 3.355e-3),
        ("erf", erf, 0, 4, 8.642e-4),
        ("sin", np.sin, 0, 3.14, 6.329e-4),
        ("log", np.log, 1e-3, 1024, 6.638e-3),
        ("rsqrt", lambda x: 1 / np.sqrt(x), 0.0156, 1024, 8.139e-3),
    ],
)
def test_the_largest_error_is_the_measured_one(name, exact, low, high, largest):
    assert errors(name, exact, low, high)[0] == pytest.approx(largest, rel=2e-4)


@pytest.mark.parametrize(
    ("name", "exact", "low", "high", "steps", "where"),
    [
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), 0, 10, 810.8, 9.938),
        ("exp", np.exp, 0, 9.9, 9.1, 9.703),
        ("log", np.log, 1e-3, 1024, 91.0, 1.004),
        ("sqrt", np.sqrt, 1e-3, 1024, 1.2, 0.002054),
        ("rsqrt", lambda x: 1 / np.sqrt(x), 0.0156, 1024, 2.1, 0.0332),
        ("inverse", lambda x: 1 / x, 0.0156, 1024, 13.5, 0.01587),
        ("erf", erf, 1e-3, 4, 3.0, 0.001701),
    ],
)
def test_the_largest_error_lies_where_it_was_measured(name, exact, low, high, steps, where):
    _, found, at = errors(name, exact, low, high)
    assert found == pytest.approx(steps, abs=0.05)
    assert at == pytest.approx(where, rel=5e-4)


def test_log_of_one_step_above_one_is_the_measured_number():
    assert computed("log", np.array([1.00390625], np.float16))[0] == pytest.approx(0.003725, abs=1e-7)


def test_special_numbers_are_as_measured():
    assert computed("log", np.zeros(1, np.float16))[0] == -45440
    assert computed("sqrt", np.full(1, -1, np.float16))[0] == 0
    assert computed("sigmoid", np.full(1, -9.9375, np.float16))[0] == 0
    assert np.isinf(computed("exp", np.full(1, 11.094, np.float16))[0])
    assert np.isfinite(computed("exp", np.full(1, 11.08, np.float16))[0])


def test_sigmoid_goes_on_in_lines_beyond_its_table():
    """0.000173 x + 0.00172 down to -9.9375 and 0.001524 x + 0.9873 up to 8.3203, in a program for the M1."""
    x = FINITE[np.abs(FINITE) > 8].astype(np.float64)
    found = computed("sigmoid", x.astype(np.float16)).astype(np.float64)
    low, high = (x > -9.9375) & (x < -8), (x > 8) & (x < 8.3203)
    assert np.abs(found[low] - (0.000173 * x[low] + 0.00172)).max() < 5e-6  # three digits of each
    assert np.abs(found[high] - (0.001524 * x[high] + 0.9873)).max() < 3e-4  # half a step of fp16
    assert (found[x <= -9.9375] == 0).all() and (found[low] > 0).all()
    assert (found[x >= 8.3203] == 1).all() and (found[high] < 1).any()
    assert (np.diff(computed("sigmoid", FINITE).astype(np.float64)) >= 0).all()


def test_the_lower_line_of_sigmoid_meets_the_function_where_the_sweep_says():
    """Its error has a minimum at -9.5078 (751K, f3_lut_m6): a table that ended flat at -8 would have none."""
    x = FINITE[(FINITE > -9.6) & (FINITE < -9.4)]
    error = np.abs(computed("sigmoid", x).astype(np.float64) - 1 / (1 + np.exp(-x.astype(np.float64))))
    assert float(x[error.argmin()]) == pytest.approx(-9.5078, abs=1e-4)


def test_softplus_ends_in_zero_as_reported():
    """coremltools #2687 on an M3 Max: 10.4 at 10.394, 0 at 10.395; ANEForge #113 on an M5: these six."""
    x = np.array([10.394, 10.395], np.float16)
    assert computed("softplus", x).tolist() == [10.390625, 0.0]
    x = np.array([5, 10, 11, 12, 88, 1000], np.float16)
    assert computed("softplus", x).round(3).tolist() == [np.float16(5.008), 10, 0, 0, 0, 0]
    below = FINITE[FINITE < 10.39]
    want = np.logaddexp(0, below.astype(np.float64))
    assert np.abs(computed("softplus", below) - want).max() < 2.0**-8
    assert (computed("softplus", FINITE[FINITE > 10.395]) == 0).all()


def test_softplus_with_constants_per_channel_ends_in_zero_too():
    x = np.array([[[5.0, 6.0], [5.0, 6.0]]], np.float16)
    found = computed("softplus_parametric", x, alpha=np.array([1, 2], np.float16), beta=np.array([2, 1], np.float16))
    assert found[0, 0].tolist() == [10.0, 0.0]
    assert found[0, 1] == pytest.approx(2 * np.log1p(np.exp([5.0, 6.0])), rel=1e-3)


def test_log_sum_exp_ends_in_zero_where_its_sum_overflows():
    """coremltools #2690 on an M3 Max, 32 channels: 11.1 at 7.616 and 0 at 7.631, neighbours in a sweep."""
    x = np.full((1, 32, 1, 2), 7.616, np.float16)
    x[..., 1] = 7.631
    found = computed("reduce_log_sum_exp", x, axes=(1,), keep_dims=True)
    assert found.shape == (1, 1, 1, 2)
    assert found.ravel().tolist() == [pytest.approx(np.log(32) + 7.616, abs=5e-3), 0.0]
    one = np.array([11.0, 11.1, 500.0], np.float16).reshape(3, 1)
    assert computed("reduce_log_sum_exp", one, axes=(-1,))[1:].tolist() == [0.0, 0.0]
    x = np.random.default_rng(0).standard_normal((4, 50)).astype(np.float16)
    want = np.log(np.exp(x.astype(np.float64)).sum(1))
    assert computed("reduce_log_sum_exp", x, axes=(1,)) == pytest.approx(want, rel=2e-3)
    assert computed("reduce_log_sum_exp", x) == pytest.approx(np.log(np.exp(want).sum()), rel=2e-3)
    assert computed("reduce_log_sum_exp", np.full((1, 4), -20, np.float16), axes=(1,))[0] == -45440


def test_fitted_tables_give_what_the_study_measured():
    """751K on an M6: the largest error, and in steps what silu gives at -2.289e-5 and gelu at -1.526e-5 (lut_ulp_m6); two knots
    as read from a compiled program. Exact knots give 1.516e-2, 6.137e-3, -9 * 2^-20, ... and 0.311, 0.1497."""
    x = FINITE[np.abs(FINITE) <= 8].astype(np.float64)
    for name, exact, largest in (
        ("silu", lambda x: x / (1 + np.exp(-x)), 1.491e-2),
        ("gelu", lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))), 6.159e-3),
    ):
        assert np.abs(computed(name, x.astype(np.float16)) - exact(x)).max() == pytest.approx(largest, rel=5e-4)
    assert computed("silu", np.array([-2.289e-5, 0.5], np.float16)).tolist() == [-1797 / 2**20, pytest.approx(0.296, abs=5e-4)]
    assert computed("gelu", np.array([-1.526e-5, 0.25], np.float16)).tolist() == [-1595 / 2**21, pytest.approx(0.1436, abs=5e-5)]


def test_the_error_of_fitted_tables_vanishes_where_it_was_measured():
    """Twice between two knots, as least squares have it (751K, f3_lut_m6)."""
    for name, exact, zeros in (
        ("silu", lambda x: x / (1 + np.exp(-x)), (-9.5859, -8.3438, -6.6133, -6.4141, -6.1289, -5.8945, -5.6133, -5.4102)),
        ("gelu", lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))), (-2.9512, -2.8086, -2.7031, -2.5586, -2.4531, -2.3008, -2.2031)),
    ):
        x = FINITE[(FINITE > -10) & (FINITE < -1)]
        off = computed(name, x).astype(np.float64) - exact(x.astype(np.float64))
        found = x[1:][np.sign(off[1:]) != np.sign(off[:-1])].astype(np.float64)
        for zero in zeros:
            assert np.abs(found - zero).min() < 0.03, (name, zero, found)


def test_the_modes_of_gelu_are_one_table():
    x = FINITE[::7]
    assert (computed("gelu", x, mode="EXACT") == computed("gelu", x, mode="TANH_APPROXIMATION")).all()


def test_functions_may_be_exact_instead():
    x = FINITE[np.abs(FINITE) < 8]
    want = (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float16)
    assert np.abs(computed("sigmoid", x, Settings(functions="nearest")).astype(float) - want).max() < 2.0**-10
