"""Masks from the Mersenne Twister against torch's plain kernel, to the bit."""

import numpy as np
import pytest
import torch

from torchane import native
from torchane.capture.drawn import _is_torchs
from torchane.capture.torch_private import twister_of
from torchane.errors import DeviceError


def after(words: int, seed: int = 3) -> torch.Generator:
    """A generator that has given so many words."""
    generator = torch.Generator().manual_seed(seed)
    torch.empty(words).uniform_(generator=generator)
    return generator


def ours(generator: torch.Generator, count: int, p: float) -> np.ndarray:
    state, mask = generator.get_state(), np.empty(count, np.bool_)
    words, left, given = twister_of(state.numpy())
    given[0] = native.bernoulli(mask, p, words, 625 - int(left[0]))
    left[0] = 625 - int(given[0])
    generator.set_state(state)
    return mask


@pytest.mark.skipif(not _is_torchs(), reason="torch draws with MKL on this processor")
@pytest.mark.parametrize("words", [0, 1, 623, 624, 625])
@pytest.mark.parametrize("count", [0, 1, 311, 312, 313, 5000])
def test_bools_and_the_state_behind_them_are_torchs(isa: str, words: int, count: int) -> None:
    one, other = after(words), after(words)
    for p in (0.9, 1 / 3, 0.0, 1.0):
        wanted = torch.empty(count, dtype=torch.bool).bernoulli_(p, generator=other)
        assert np.array_equal(ours(one, count, p), wanted.numpy())
        assert torch.equal(torch.empty(5).uniform_(generator=one), torch.empty(5).uniform_(generator=other))


def test_instruction_sets_agree() -> None:
    before, found = native.get_isa(), set()
    for name in native.isas():
        native.set_isa(name)
        found.add(ours(after(7), 10_001, 0.3).tobytes())
    native.set_isa(before)
    assert len(found) == 1


@pytest.mark.parametrize(("p", "given", "complaint"), [(1.5, 0, "p is 1.5"), (float("nan"), 0, "p is nan"), (0.5, 625, "625 of 624 words"), (0.5, -1, "-1 of 624")])
def test_bad_input_is_refused(p: float, given: int, complaint: str) -> None:
    with pytest.raises(DeviceError, match=complaint):
        native.bernoulli(np.empty(4, np.bool_), p, np.zeros(624, np.uint64), given)
