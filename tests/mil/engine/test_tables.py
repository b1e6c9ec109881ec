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
    assert computed("sigmoid", np.full(1, -9.9, np.float16))[0] == 0
    assert np.isinf(computed("exp", np.full(1, 11.094, np.float16))[0])
    assert np.isfinite(computed("exp", np.full(1, 11.08, np.float16))[0])


def test_the_modes_of_gelu_are_one_table():
    x = FINITE[::7]
    assert (computed("gelu", x, mode="EXACT") == computed("gelu", x, mode="TANH_APPROXIMATION")).all()


def test_functions_may_be_exact_instead():
    x = FINITE[np.abs(FINITE) < 8]
    want = (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float16)
    assert np.abs(computed("sigmoid", x, Settings(functions="nearest")).astype(float) - want).max() < 2.0**-10
