"""The comparison with the twin: what is rounding passes, what is wrong does not, and how small a wrong number may be.

The engine here is the engine's arithmetic by the NumPy rules, each result up to 4 steps of fp16 off and products added in
the opposite order (tests/apple/standin.py, noisy).
"""

import numpy as np
import pytest
from standin import noisy

from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.runtime.ane.doctor.checks import SHAPE, _op_programs
from torchane.runtime.ane.verify import Verifier, roundings
from torchane.runtime.twin import load_program

LAYER = "a layer"


def op_program(name):
    b = Builder()
    x, y = b.input("a0_x", SHAPE), b.input("a1_y", SHAPE)
    return b.program(b.identity(x=_op_programs()[name](b, x, y), name="z0_y"), b.add(x=x, y=y, name="z1_y"))


def layer():
    """A norm, a product with a weight, a gate, a softmax and a product with its transpose: two outputs of one shape."""
    b = Builder()
    x, w, v = b.input("a0_x", (1, 64, 1, 64)), b.input("a1_w", (1, 1, 64, 64)), b.input("a2_v", (1, 1, 64, 64))
    mean = b.mul(x=b.reduce_sum(x=b.mul(x=x, y=x), axes=(1,), keep_dims=True), y=1 / 64)
    normed = b.mul(x=x, y=b.pow(x=b.add(x=mean, y=1e-3), y=-0.5))
    rows = b.reshape(x=normed, shape=(1, 1, 64, 64))
    gate = b.mul(x=b.matmul(x=w, y=rows), y=b.sigmoid(x=b.matmul(x=v, y=rows)))
    soft = b.softmax(x=b.matmul(x=gate, y=rows, transpose_y=True), axis=-1)
    return b.program(b.identity(x=b.matmul(x=soft, y=gate), name="z0_y"), b.identity(x=b.matmul(x=w, y=gate, transpose_x=True), name="z1_dy"))


class Case:
    def __init__(self, name):
        self.program = layer() if name == LAYER else op_program(name)
        self.twin = load_program(self.program, name, "engine")
        self.verifier = Verifier()

    def inputs(self, seed):
        rng = np.random.default_rng(seed)
        made = {}
        for var in self.program.inputs:
            numbers = rng.standard_normal(var.shape) if "_y" not in var.name else rng.uniform(0.25, 2.0, var.shape)
            made[var.name] = (numbers * 2.0 ** rng.integers(-4, 2)).astype(np.float16)
        return made

    def engine(self, given, arithmetic):
        found = evaluate(self.program, given, arithmetic=arithmetic)
        return [found[var.name] for var in self.program.outputs]

    def differences(self, given, got):
        arrays = list(given.values())
        return self.verifier.differences(self.twin, arrays, got, self.verifier.expected(self.twin, arrays))


@pytest.fixture(scope="module")
def case():
    made = {}
    return lambda name: made.setdefault(name, Case(name))


NAMES = (*_op_programs(), LAYER)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_rounding_is_no_difference(case, name, steps):
    one = case(name)
    given = one.inputs(steps)
    assert one.differences(given, one.engine(given, noisy(steps, seed=steps))) == []


@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_halves_are_differences(case, name):
    one = case(name)
    given = one.inputs(0)
    right = one.engine(given, "engine")
    assert one.differences(given, [right[0] * 0, right[1]])
    assert one.differences(given, [right[0], (right[1] / 2).astype(np.float16)])


def test_one_wrong_number_among_thousands_is_a_difference(case):
    one = case(LAYER)
    given = one.inputs(0)
    right = one.engine(given, "engine")
    right[0][0, 0, 5, 7] += np.abs(right[0]).max()
    (found,) = one.differences(given, right)
    assert found.output == 0 and "output 0" in str(found)


def test_an_infinity_where_none_belongs_is_a_difference(case):
    one = case(LAYER)
    given = one.inputs(0)
    right = one.engine(given, "engine")
    right[1][..., ::8] = np.inf
    assert one.differences(given, right)


def test_numbers_of_every_size_are_compared_by_their_own(case):
    """Gradients of 2^-10 are looked at as closely as activations."""
    one = case("matmul")
    given = {name: (array * np.float16(2.0**-5)).astype(np.float16) for name, array in one.inputs(0).items()}
    right = one.engine(given, "engine")
    assert one.differences(given, right) == []
    assert one.differences(given, [(right[0] * 1.5).astype(np.float16), right[1]])


#: The two tests of thousands are cut into parts, each to be run alone where time is short.
PARTS = range(5)


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_ten_thousand_clean_dispatches_raise_no_alarm(case, evidence, part):
    """So many in the five parts together."""
    clean = 0
    for seed in range(part, part + 10_000, len(PARTS)):
        for name in NAMES:
            one = case(name)
            given = one.inputs(seed)
            assert one.differences(given, one.engine(given, noisy(4, seed=seed))) == [], (name, seed)
            clean += 1
        if clean >= 10_000 / len(PARTS):
            break
    evidence("clean dispatches without an alarm", clean)


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_swapped_ports_and_old_weights_are_found_each_time_of_a_thousand(case, evidence, part):
    one = case(LAYER)
    found = {"swapped": 0, "old weights": 0}
    for seed in range(part, 1000, len(PARTS)):
        given = one.inputs(seed)
        right = one.engine(given, noisy(4, seed=seed))
        found["swapped"] += bool(one.differences(given, right[::-1]))
        old = {**given, "a1_w": one.inputs(seed + 1_000_000)["a1_w"]}
        found["old weights"] += bool(one.differences(given, one.engine(old, noisy(4, seed=seed))))
    for what, count in found.items():
        evidence(f"{what}: found of 200", count)
    assert found == {"swapped": 200, "old weights": 200}


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_corruption_that_is_found(case, name, evidence):
    """Numbers off by a share e of the output's root mean square, at random: e is halved until nothing is found any more."""
    one = case(name)
    smallest = 1.0
    for power in range(1, 12):
        share = 2.0**-power
        hits = 0
        for seed in range(10):
            given = one.inputs(seed)
            right = one.engine(given, noisy(1, seed=seed))
            rms = np.sqrt(np.mean(np.square(right[0], dtype=np.float64)))
            spoiled = right[0] + np.random.default_rng(seed).standard_normal(right[0].shape) * rms * share
            hits += bool(one.differences(given, [spoiled.astype(np.float16), right[1]]))
        if hits < 10:
            break
        smallest = share
    evidence(f"{name}: smallest corruption found 10 of 10 times, share of the root mean square", smallest)
    assert smallest <= (0.5 if name == LAYER else 0.0625)  # a sharp softmax turns over by rounding alone


def test_what_doctor_measured_widens_the_budget_up_to_four_steps():
    ops = {"mul": 3, "exp": 1}
    assert roundings(ops, {"mul": 0.1, "exp": 4.0}) == roundings(ops)  # the list allows as much
    assert roundings(ops) < roundings(ops, {"mul": 3.9}) < roundings(ops, {"mul": 4.0}) == roundings(ops, {"mul": 1e9})


@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_a_single_number_that_is_not_finite_is_a_difference(case, what):
    one = case(LAYER)
    given = one.inputs(0)
    right = one.engine(given, "engine")
    right[1][0, 0, 5, 7] = what
    (found,) = one.differences(given, right)
    assert str(found) == "output 1: 1 numbers are infinite or NaN, or are not and should be"


def test_an_overflow_that_a_rounding_decides_is_none(case):
    """Numbers beside the ceiling of the engine's sums, 32768, infinite on one side alone."""
    one = case("mul")
    x = np.full(SHAPE, 128.0, np.float16)
    y = np.full(SHAPE, 1.0, np.float16)
    y[0, 0, 0, 0] = 255.9
    given = {"a0_x": x, "a1_y": y}
    right = one.engine(given, "engine")
    assert np.isfinite(right[0]).all() and right[0].max() > 30_000
    right[0][0, 0, 0, 0] = np.inf
    assert one.differences(given, right) == []
