"""AdamW's update against the same formula in NumPy's float32, to the bit, and against torch's."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from torchane import native
from torchane.errors import DeviceError

NUMBERS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def drawn(size: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """A parameter, its gradient, and moments as they are after some steps."""
    rng = np.random.default_rng(seed)
    param, grad, exp_avg = (rng.standard_normal(size).astype(np.float32) * scale for scale in (1, 0.1, 0.1))
    return param, grad, exp_avg.astype(np.float32), (rng.random(size) * 0.01).astype(np.float32)


def plain(param, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, weight_decay, grad_factor=1.0):
    """Each op in float32, one after the other, with factors from float64."""
    f = np.float32
    grad = grad * f(grad_factor)
    exp_avg = exp_avg + f(1 - beta1) * (grad - exp_avg)
    exp_avg_sq = f(beta2) * exp_avg_sq + f(1 - beta2) * grad * grad
    size = np.sqrt(exp_avg_sq) * f(1 / math.sqrt(1 - beta2**step)) + f(eps)
    return f(1 - lr * weight_decay) * param - f(lr / (1 - beta1**step)) * exp_avg / size, exp_avg, exp_avg_sq


@pytest.mark.parametrize("size", [0, 1, 15, 17, 1000, 32768 * 2 + 5])
def test_it_has_the_bits_of_the_plain_formula(isa: str, size: int) -> None:
    arrays, staged = drawn(size), np.full(size, np.nan, np.float16)
    want = plain(*arrays, step=3, **NUMBERS, grad_factor=0.3)
    native.adamw([(*arrays, staged)], step=3, **NUMBERS, grad_factor=0.3)
    for found, wanted in zip((arrays[0], arrays[2], arrays[3]), want, strict=True):
        assert np.array_equal(found, wanted)
    assert np.array_equal(staged, want[0].astype(np.float16))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_gradient_in_fp16_counts_as_what_it_is_times_its_factor(isa: str, in_place: bool) -> None:
    """And may lie where the staged weight goes."""
    param, grad, exp_avg, exp_avg_sq = drawn(32768 * 2 + 5)
    half = (grad * 256).astype(np.float16)
    want = plain(param, half.astype(np.float32) * np.float32(2.0**-8), exp_avg, exp_avg_sq, step=3, **NUMBERS, grad_factor=0.3)
    staged = half if in_place else np.empty_like(half)
    native.adamw([(param, (half, 2.0**-8), exp_avg, exp_avg_sq, staged)], step=3, **NUMBERS, grad_factor=0.3)
    for found, wanted in zip((param, exp_avg, exp_avg_sq), want, strict=True):
        assert np.array_equal(found, wanted)
    assert np.array_equal(staged, want[0].astype(np.float16))


def test_a_gradient_in_pieces_has_the_bits_of_one_array(isa: str) -> None:
    param, grad, exp_avg, exp_avg_sq = drawn(32768 * 2 + 5)
    half = (grad * 256).astype(np.float16)
    whole = np.concatenate([half[:7] * np.float32(0.5), grad[7:40_000], half[40_000:40_003] * np.float32(2.0**-8), half[40_003:] * np.float32(2)])
    pieces = [(half[:7], 0.5), grad[7:40_000], (half[40_000:40_003], 2.0**-8), grad[:0], (half[40_003:], 2.0)]
    assert native.sum_of_squares([pieces, grad]) == native.sum_of_squares([whole, grad])
    want = plain(param, whole, exp_avg, exp_avg_sq, step=3, **NUMBERS, grad_factor=0.3)
    native.adamw([(param, pieces, exp_avg, exp_avg_sq, None)], step=3, **NUMBERS, grad_factor=0.3)
    for found, wanted in zip((param, exp_avg, exp_avg_sq), want, strict=True):
        assert np.array_equal(found, wanted)


def test_the_norm_of_fp16_gradients_is_that_of_the_fp32_tensors_that_they_stand_for(isa: str) -> None:
    whole, half = drawn(70_001)[1], (drawn(200_003)[1] * 256).astype(np.float16)
    widened = half.astype(np.float32) * np.float32(2.0**-8)
    assert native.sum_of_squares([whole, (half, 2.0**-8)]) == native.sum_of_squares([whole, widened])


def test_it_has_the_same_bits_for_any_number_of_threads(set_threads: Callable[[int], None]) -> None:
    seen = set()
    for count in (1, 2, 5):
        set_threads(count)
        arrays, others = drawn(100_001), drawn(3, seed=1)
        native.adamw([(*arrays, None), (*others, None)], step=1, **NUMBERS)
        seen.add(b"".join(array.tobytes() for array in (*arrays, *others)))
    assert len(seen) == 1


def test_it_keeps_within_a_few_roundings_of_torchs_own() -> None:
    param, grad, exp_avg, exp_avg_sq = drawn(5000)
    theirs = torch.from_numpy(param.copy()).requires_grad_()
    theirs.grad = torch.from_numpy(grad)
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    optimizer.state[theirs] = {"step": torch.tensor(2.0), "exp_avg": torch.from_numpy(exp_avg.copy()), "exp_avg_sq": torch.from_numpy(exp_avg_sq.copy())}
    optimizer.step()
    before = param.copy()
    native.adamw([(param, grad, exp_avg, exp_avg_sq, None)], step=3, **NUMBERS)
    steps = np.abs(param - before)
    unit = np.spacing(np.abs(param)) + 4 * np.spacing(steps)  # the weight's own rounding, and four of the step's
    assert (np.abs(param - theirs.detach().numpy()) <= unit).all()
    assert np.allclose(exp_avg_sq, optimizer.state[theirs]["exp_avg_sq"].numpy(), rtol=3e-7, atol=0)


GOOD = tuple(np.zeros(4, np.float32) for _ in range(4))


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        (GOOD, "4 values"),
        ((GOOD[0], (np.zeros(3, np.float16), 1.0), *GOOD[2:], None), "grad holds 3 numbers and param 4"),
        ((GOOD[0], (GOOD[1], 1.0), *GOOD[2:], None), "grad holds float32; the port takes float16"),
        ((GOOD[0], (np.zeros(4, np.float16),), *GOOD[2:], None), "grad is a tuple of 1; an fp16 array and its factor"),
        ((*GOOD[:3], np.zeros(5, np.float32), None), "exp_avg_sq holds 5 numbers and param 4"),
        ((*GOOD, np.zeros(3, np.float16)), r"staged has the shape \(3\); the port's is \(4\)"),
        ((GOOD[0].astype(np.float64), *GOOD[1:], None), "param holds float64"),
        ((*GOOD[:3], np.zeros(8, np.float32)[::2], None), "exp_avg_sq is strided"),
        ((np.broadcast_to(np.zeros(1, np.float32), (4,)), *GOOD[1:], None), "param is read-only"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(item: tuple, complaint: str) -> None:
    first = drawn(4)
    before = first[0].copy()
    with pytest.raises(DeviceError, match=complaint):
        native.adamw([(*first, None), item], step=1, **NUMBERS)
    assert np.array_equal(first[0], before)


def test_steps_are_counted_from_one() -> None:
    with pytest.raises(DeviceError, match="step is 0"):
        native.adamw([(*drawn(4), None)], step=0, **NUMBERS)
