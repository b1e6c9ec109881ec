"""The loss scale retries, rises and gives up as its docstring says."""

import math

import pytest

from torchane.abi.numbers import SUM_MAX
from torchane.errors import NumericsError, TorchaneWarning
from torchane.runtime.loss_scale import MAX_TRIES, PATIENCE, START_TARGET, LossScale, Reading


def reading(largest: float = 1.0, zeros: int = 0, nonfinite: int = 0) -> Reading:
    found = Reading()
    found.add("dw", largest, nonfinite, zeros, 1000)
    return found


def test_the_largest_tangent_is_brought_to_the_target() -> None:
    seen = []
    LossScale().run(3e-4, lambda scale: (seen.append(scale), reading()))
    assert 2 ** (START_TARGET - 1) <= seen[0] * 3e-4 < 2**START_TARGET


def test_the_scale_is_a_power_of_two() -> None:
    scale = LossScale()
    scale.run(0.0123, lambda s: (None, reading()))
    assert math.frexp(scale.last_scale)[0] == 0.5


def test_a_loop_that_scales_its_loss_gets_the_same_scaled_tangent() -> None:
    seen = []
    for factor in (1.0, 2.0**16):
        LossScale().run(0.01 * factor, lambda scale, factor=factor: (seen.append(scale * factor), reading()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("bad", [reading(largest=SUM_MAX), reading(nonfinite=1)])
def test_an_overflow_runs_the_backward_again_with_a_smaller_scale(bad: Reading) -> None:
    scales: list[float] = []

    def backward(scale: float) -> tuple[str, Reading]:
        scales.append(scale)
        return "gradients", bad if len(scales) < 3 else reading()

    state = LossScale()
    assert state.run(1.0, backward) == "gradients"
    assert scales == [scales[0], scales[0] / 4, scales[0] / 16]
    assert state.retries == 2


def test_the_largest_value_below_the_ceiling_is_not_an_overflow() -> None:
    assert not reading(largest=32736.0).overflowed


def test_the_tries_are_bounded_and_the_error_names_the_value() -> None:
    calls = []
    with pytest.raises(NumericsError, match="dw is not finite"):
        LossScale().run(1.0, lambda scale: (calls.append(scale), reading(nonfinite=1)))
    assert len(calls) == MAX_TRIES


@pytest.mark.parametrize("tangent", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_at_once(tangent: float) -> None:
    with pytest.raises(NumericsError, match="the loss itself is NaN or infinite"):
        LossScale().run(tangent, lambda scale: pytest.fail("no program may run"))


def test_faint_results_run_once_more_with_a_larger_scale_and_keep_it() -> None:
    state, scales = LossScale(), []
    for _ in range(2):
        state.run(1.0, lambda scale: (scales.append(scale), reading(largest=scale * 2**-10)))
    assert scales == [2**7, 2**13, 2**13]


def test_faint_results_do_not_raise_the_scale_to_where_it_overflowed() -> None:
    state, scales = LossScale(), []

    def backward(scale: float) -> tuple[None, Reading]:
        scales.append(scale)
        return None, reading(largest=2**-5, nonfinite=int(scale > 2**10))

    for _ in range(2):
        state.run(1.0, backward)
    assert scales == [2**7, 2**13, 2**11, 2**9, 2**9]


def test_a_growing_share_of_zeros_raises_the_scale() -> None:
    state = LossScale()
    for _ in range(PATIENCE):
        state.run(1.0, lambda scale: (None, reading(zeros=10)))
    state.run(1.0, lambda scale: (None, reading(zeros=100)))
    assert (state.target, state.raises) == (START_TARGET + 1, 1)


def test_a_steady_share_of_zeros_leaves_the_scale_alone() -> None:
    state = LossScale()
    for _ in range(3 * PATIENCE):
        state.run(1.0, lambda scale: (None, reading(zeros=500)))
    assert (state.target, state.raises) == (START_TARGET, 0)


def test_the_scale_does_not_rise_into_the_ceiling() -> None:
    state = LossScale()
    for zeros in [10] * PATIENCE + [100] * PATIENCE:
        state.run(1.0, lambda scale, zeros=zeros: (None, reading(largest=SUM_MAX / 2, zeros=zeros)))
    assert state.raises == 0


def test_a_zero_tangent_needs_no_scale() -> None:
    state = LossScale()
    state.run(0.0, lambda scale: (None, reading(largest=0.0, zeros=1000)))
    assert math.isfinite(state.last_scale)


def test_a_gradient_that_no_one_scale_holds_beside_what_it_grows_to_is_warned_of_once():
    def backward(scale):  # 2^30 times larger on its way
        return None, Reading(largest=min(scale * 2.0**30, 1e9), count=1, where="x in model.layers.3")

    loss_scale = LossScale()
    with pytest.warns(TorchaneWarning, match="no one scale keeps both.*ranges"):
        loss_scale.run(1.0, backward)
    loss_scale.run(1.0, backward)  # warnings are errors here
