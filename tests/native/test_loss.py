"""Cross-entropy of rows and its gradient against float64."""

from collections.abc import Callable

import numpy as np
import pytest

from torchane import native
from torchane.errors import DeviceError

IGNORED = -100
ROUNDING = 2.0**-24


def drawn(rows: int, entries: int, spread: float = 3.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, targets of which every third is left out, weights."""
    rng = np.random.default_rng(entries)
    targets = rng.integers(0, entries, rows)
    targets[::3] = IGNORED
    return (rng.standard_normal((rows, entries)) * spread).astype(np.float32), targets, rng.standard_normal(rows).astype(np.float32)


def plain(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares = powers / powers.sum(1, keepdims=True)
    kept, rows = targets != IGNORED, np.arange(len(targets))
    at = np.where(kept, targets, 0)
    losses = np.where(kept, -(logits[rows, at] - logits.max(1)) + np.log(powers.sum(1)), 0)
    grad = shares.copy()
    grad[rows, at] -= 1
    return losses, grad * (weights * kept)[:, None]


def computed(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray, in_place: bool = False) -> tuple[np.ndarray, np.ndarray]:
    losses, tops, sums = (np.empty(len(targets), np.float32) for _ in range(3))
    native.token_losses(losses, tops, sums, logits, targets, IGNORED)
    grad = logits if in_place else np.full_like(logits, np.nan)
    native.token_gradients(grad, weights, tops, sums, logits, targets, IGNORED)
    return losses, grad


@pytest.mark.parametrize(("rows", "entries"), [(1, 1), (7, 17), (40, 259), (5, 32000), (0, 4)])
@pytest.mark.parametrize("in_place", [False, True])
def test_they_are_those_of_float64(isa: str, rows: int, entries: int, in_place: bool) -> None:
    logits, targets, weights = drawn(rows, entries)
    losses, grad = plain(logits, targets, weights)
    found = computed(logits.copy(), targets, weights, in_place)
    assert np.allclose(found[0], losses, rtol=8 * ROUNDING, atol=8 * ROUNDING)
    assert np.allclose(found[1], grad, rtol=32 * ROUNDING, atol=4 * ROUNDING)


def test_rows_with_infinities_are_what_they_are_in_numpy(isa: str) -> None:
    logits = np.array([[0, -np.inf, 1], [np.nan, 0, 1], [-np.inf, -np.inf, -np.inf]], np.float32)
    losses, grad = computed(logits, np.array([0, 1, 2]), np.ones(3, np.float32))
    assert losses[0] == pytest.approx(np.log(1 + np.e)) and np.isnan(losses[1:]).all()
    assert grad[0, 1] == 0 and np.isnan(grad[1:]).all()


def test_the_bits_are_the_same_everywhere(set_threads: Callable[[int], None]) -> None:
    logits, targets, weights = drawn(61, 1000)
    before, seen = native.get_isa(), set()
    for name in native.isas():
        if name == "base":  # its e^ has other last digits
            continue
        for count in (1, 2, 5):
            native.set_isa(name)
            set_threads(count)
            seen.add(b"".join(array.tobytes() for array in computed(logits.copy(), targets, weights)))
    native.set_isa(before)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"targets": np.array([0, 5, 1])}, "target 1 is 5, and the vocabulary has 5 entries"),
        ({"targets": np.array([0, -1, 1])}, "target 1 is -1"),
        ({"targets": np.array([0, 1])}, "2 targets for 3 rows"),
        ({"logits": np.zeros((3, 5), np.float16)}, "logits holds float16"),
        ({"logits": np.zeros((3, 10), np.float32)[:, ::2]}, "logits is strided"),
        ({"logits": np.zeros(15, np.float32)}, r"logits has the shape \(15\)"),
        ({"losses": np.zeros(4, np.float32)}, "losses holds 4 numbers; 3 are needed"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(change: dict, complaint: str) -> None:
    given = {"losses": np.full(3, 7, np.float32), "logits": np.zeros((3, 5), np.float32), "targets": np.array([0, 1, 2]), **change}
    with pytest.raises(DeviceError, match=complaint):
        native.token_losses(tops=np.empty(3, np.float32), sums=np.empty(3, np.float32), ignored=IGNORED, **given)
    assert (given["losses"][:3] == 7).all() or "losses" in change
