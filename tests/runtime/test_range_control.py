"""The choice of exponents, against a program made of numbers: one product whose true size is known."""

import json

import pytest

from torchane.abi.ranges import UNSCALED, Bound, Form, Measure, Ranges
from torchane.errors import NumericsError
from torchane.runtime.range_control import (
    ABOVE,
    BELOW,
    HISTORY,
    MAX_RUNS,
    DispatchRanges,
    Placed,
    RangeControl,
    controlled,
    placed_at,
    size_of,
)

V0, I0, I1 = Form.var("v0"), Form.var("i0"), Form.var("i1")
TARGET = 8

#: y = x * w, the only output; stored y = true y * 2^v0.
PRODUCT = Ranges(
    ("v0",), (V0 - I0 - I1,), (V0,),
    (Measure("input", 0, I0), Measure("input", 1, I1), Measure("output", 0, V0)),
    (Bound(0, V0 - I1, 13, 16, "v0", "operand x"), Bound(2, V0, TARGET, 15, "v0", "y", (0, 1, 2))),
    rows=0,
)  # fmt: skip
#: The same read as it is.
TRUE = Ranges((), (), (UNSCALED,), (Measure("output", 0, UNSCALED),), (Bound(0, UNSCALED, 8, 16, None, "y"),), rows=0)


class Engine:
    """Gives the result of a product: true times the powers of both operands and of the multiplier."""

    def __init__(self, true: float, powers: int):
        self.true, self.powers, self.runs = true, powers, 0

    def __call__(self, multipliers):
        self.runs += 1
        stored = self.true * 2.0 ** (self.powers + sum(multipliers))
        return [], [stored if 2.0**-16 <= stored < 32768 else 0.0 if stored < 1 else float("inf")]


def run(true: float, state: DispatchRanges, placed=(Placed(3, 1), Placed(-2, 4)), ranges=PRODUCT):
    engine = Engine(true, sum(one.exponent for one in placed))
    (found,) = controlled(ranges, state, placed, engine, "layer 3")
    return found, engine


@pytest.mark.parametrize("power", range(-2, 20, 3))
def test_the_first_run_brings_a_result_to_its_target_whatever_its_size(power):
    found, _ = run(1.5 * 2.0**power, DispatchRanges())
    stored = 1.5 * 2.0 ** (power + found.exponent)
    assert 2.0 ** (TARGET - ABOVE - 1) <= stored < 2.0 ** (TARGET + BELOW)
    assert found.size == power + 1


def test_a_multiplied_operand_stays_within_fp16_where_the_result_could_be_larger():
    found, _ = run(1.5 * 2.0**-14, DispatchRanges())
    assert found.exponent + 2 + 1 == 13  # the exponent that x is multiplied to, and its own size


def test_the_next_run_of_the_same_size_is_one_run_and_moves_nothing():
    state = DispatchRanges()
    before, _ = run(1.5, state)
    after, engine = run(1.4, state)
    assert engine.runs == 1 and after.exponent == before.exponent


def test_a_result_a_digit_larger_leaves_the_exponent_where_it_is():
    state = DispatchRanges()
    before, _ = run(1.5, state)
    after, _ = run(3.0, state)
    again, engine = run(3.0, state)
    assert before.exponent == after.exponent == again.exponent and engine.runs == 1


def test_an_overflow_is_seen_and_the_program_runs_again():
    state = DispatchRanges()
    run(1.5, state)
    found, engine = run(1.5 * 2.0**11, state)
    assert engine.runs > 1 and state.reruns > 0
    assert 1.5 * 2.0 ** (11 + found.exponent) < 32752


def test_the_largest_of_the_last_steps_counts_and_is_forgotten_after_them():
    state = DispatchRanges()
    run(1.5, state)
    run(1.5 * 2.0**6, state)
    held, _ = run(1.5, state)
    for _ in range(HISTORY + 1):
        later, _ = run(1.5, state)
    assert later.exponent >= held.exponent + 4


def test_a_dispatch_of_the_same_program_gives_the_first_guess():
    other = DispatchRanges()
    run(1.5 * 2.0**-12, other)
    engine = Engine(1.5 * 2.0**-12, 1)
    controlled(PRODUCT, DispatchRanges(), (Placed(3, 1), Placed(-2, 4)), engine, "layer 2", other)
    assert engine.runs == 1


def test_zeros_are_accepted_as_zeros():
    found, engine = run(0.0, DispatchRanges())
    assert found.size is None and engine.runs <= 4


def test_what_is_read_as_it_is_and_overflows_is_an_error_that_names_it():
    with pytest.raises(NumericsError, match=r"layer 3: y reaches inf and cannot be stored smaller"):
        controlled(TRUE, DispatchRanges(), [], lambda powers: ([], [float("inf")]), "layer 3")


def test_a_result_that_always_overflows_ends_after_some_runs():
    with pytest.raises(NumericsError, match="layer 3"):
        controlled(PRODUCT, DispatchRanges(), (Placed(), Placed()), lambda powers: ([], [float("inf")]), "layer 3")
    assert MAX_RUNS > 10


def test_the_memory_goes_through_json_and_back():
    control = RangeControl()
    (state,) = control.of("forward", 1)
    run(1.5, state)
    other = RangeControl()
    other.restore(json.loads(json.dumps(control.to_dict())))
    assert other == control
    with pytest.raises(ValueError, match="zip"):
        other.restore({"forward": []})


@pytest.mark.parametrize(("largest", "size"), [(0.0, None), (1.0, 1), (0.75, 0), (32768.0, 16), (float("inf"), 17)])
def test_a_size_is_the_power_of_two_above(largest, size):
    assert size_of(largest) == size


def test_a_host_value_is_placed_below_its_target_within_limits():
    assert placed_at(0.75, 3) == Placed(3, 0)
    assert placed_at(2.0**-30, 3, most=12) == Placed(12, -29)
    assert placed_at(0.0, 3) == Placed(0, None)
