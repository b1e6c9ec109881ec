"""Masks that are made by multiplying, and what is none: whole models on the twin beside eager float32."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from capture_helpers import compile_for_twin, distance
from torch import Tensor, nn

from torchane.abi.numbers import EXCLUDED, MASKED
from torchane.capture import backend
from torchane.runtime.staging import _with_masks_in_range

pytestmark = pytest.mark.filterwarnings("ignore::torchane.errors.TorchaneWarning")

CAUSAL = torch.ones(6, 6).tril()

#: keep (2, 1, 1, 6): 1 for a token, 0 for padding; scores small enough that adding -1e4 absorbs them in fp16
MASKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "(1 - m) * -1e9": lambda a, keep: a + (1 - keep * CAUSAL) * -1e9,
    "-1e9 * (1 - m)": lambda a, keep: a + -1e9 * (1.0 - keep * CAUSAL),
    "(m - 1) * 1e9": lambda a, keep: a + (keep * CAUSAL - 1) * 1e9,
    "a * m - 1e10 * (1 - m)": lambda a, keep: a * keep * CAUSAL - 1e10 * (1 - keep * CAUSAL),
    "two masks added": lambda a, keep: a + (1 - keep) * -1e9 + (1 - CAUSAL) * -1e9,
    "two masks added first": lambda a, keep: a + ((1 - keep) * -1e9 + (1 - CAUSAL) * -1e9),
    "finfo.min": lambda a, keep: a + (1 - keep * CAUSAL) * torch.finfo(torch.float32).min,
    "of bools": lambda a, keep: a + (keep * CAUSAL == 0).float() * -1e9,
    "of integers": lambda a, keep: a - 1e9 * (1 - (keep * CAUSAL).long()),
    "of what the model decides": lambda a, keep: a + (1 - (a.detach() > -0.2).float() * keep * CAUSAL) * -1e9,
    "-1e9 * ones_like": lambda a, keep: torch.where(keep * CAUSAL > 0, a, -1e9 * torch.ones_like(a)),
    "full_like": lambda a, keep: torch.where(keep * CAUSAL > 0, a, torch.full_like(a, -1e9)),
    "zeros_like - 1e9": lambda a, keep: torch.where(keep * CAUSAL > 0, a, torch.zeros_like(a) - 1e9),
}


class Attention(nn.Module):
    def __init__(self, mask: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.mask = mask
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 6, 3, 2, 8).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / 8**0.5
        return self.out((self.mask(scores, keep).softmax(-1) @ v).transpose(1, 2).reshape(2, 6, 16))


def beside_eager(model: nn.Module, x: Tensor, keep: Tensor) -> list[float]:
    torch._dynamo.reset()
    eager = copy.deepcopy(model)
    grad = torch.randn(2, 6, 16)
    found = []
    for each in (compile_for_twin(model), eager):
        y = each(x, keep)
        y.backward(grad)
        assert y.isfinite().all()
        found.append(y)
    pairs = [(a.grad, b.grad) for a, b in zip(model.parameters(), eager.parameters(), strict=True) if b.grad is not None]
    return [distance(*found), *(distance(a, b) for a, b in pairs)]


@pytest.mark.parametrize("way", MASKS)
def test_rows_that_are_masked_throughout_get_equal_shares(way: str) -> None:
    torch.manual_seed(0)
    keep = torch.ones(2, 1, 1, 6)
    keep[0, ..., :3] = 0  # left padding: the first three queries see nothing
    assert max(beside_eager(Attention(MASKS[way]), torch.randn(2, 6, 16), keep)) < 16 * 2**-11


@pytest.mark.parametrize("fill", [-1e9, torch.finfo(torch.float32).min, -1e4, -30.0])
def test_a_fill_value_may_live_in_a_frozen_parameter(fill: float) -> None:
    class Frozen(Attention):
        def __init__(self) -> None:
            super().__init__(lambda a, keep: torch.where(keep * CAUSAL > 0, a, self.fill))
            self.fill = nn.Parameter(torch.tensor(fill), requires_grad=False)

    torch.manual_seed(0)
    assert max(beside_eager(Frozen(), torch.randn(2, 6, 16), torch.ones(2, 1, 1, 6))) < 16 * 2**-11


def test_a_mask_made_by_multiplying_costs_no_program_its_products() -> None:
    """Scores, softmax and values stay in one program; only the mask is made outside."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    compile_for_twin(Attention(MASKS["(1 - m) * -1e9"]))(torch.randn(2, 6, 16), torch.ones(2, 1, 1, 6)).sum().backward()
    places = {(row.op, row.place) for row in backend.COMPILED[-1].rows if row.macs}
    assert {place for _, place in places} == {"program"}
    assert len(backend.COMPILED[-1].plans["forward"].dispatches) == 1


@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_other_products_with_a_large_number_are_not_taken_for_masks(precision: str) -> None:
    """0.3 * -1e9 is a number, and comes out as one."""
    torch._dynamo.reset()
    layer = nn.Linear(4, 4)
    x = torch.tensor([[0.3, 0.0, 1.0, 0.0]])
    with torch.no_grad():
        scaled = torch.compile(lambda x: layer(x) * -1e9 + x * 1e9, backend=backend.ane, options={"device": "twin", "precision": precision})
        torch.testing.assert_close(scaled(x), layer(x) * -1e9 + x * 1e9, rtol=2**-8, atol=1e6)


def test_what_is_staged_for_a_factor_and_its_multiples() -> None:
    source = np.array([0.0, -1e9, 1e9, -2e9, -3e8, -5.0, -np.inf], np.float32)
    staged = _with_masks_in_range(source, (-1e9,))
    assert staged.tolist() == [0.0, MASKED, -MASKED, 2 * MASKED, np.float32(-3e8), -5.0, EXCLUDED]


NOTHING_SEEN = {
    "nan_to_num": lambda p: torch.nan_to_num(p, 0.0),
    "masked_fill": lambda p: p.masked_fill(torch.isnan(p), 0.0),
    "where": lambda p: torch.where(torch.isnan(p), 0.0, p),
}


@pytest.mark.parametrize("way", NOTHING_SEEN)
def test_a_row_that_sees_nothing_and_whose_nan_becomes_zero_is_zero(way: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    hidden = torch.zeros(2, 6, 6, dtype=torch.bool)
    hidden[0, :2] = hidden[1, :, 4:] = True
    layer, x = nn.Linear(6, 6), torch.randn(2, 6, 6)

    def attend(x: Tensor) -> Tensor:
        return NOTHING_SEEN[way](layer(x).masked_fill(hidden, -torch.inf).softmax(-1)) @ x

    with torch.no_grad():
        want = attend(x)
        found = torch.compile(attend, backend=backend.ane, options={"device": "twin"})(x)
    assert not want[0, :2].any() and not found[0, :2].any()
    assert distance(found, want) < 8 * 2**-11
