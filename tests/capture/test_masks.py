"""Attention under every way to write a mask, where some queries see nothing: outputs and gradients beside eager fp32."""

import copy

import pytest
import torch
import torch.nn.functional as F
from capture_helpers import compile_for_twin, distance
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from torchane.errors import TorchaneWarning

LOWEST = torch.finfo(torch.float32).min


def written_out(q, k, v, seen, low):
    scores = (q @ k.transpose(-1, -2) * 4 / q.shape[-1] ** 0.5).masked_fill(~seen, low)
    return scores.softmax(-1) @ v


def with_sdpa(q, k, v, seen, low):
    mask = seen if low is None else torch.zeros(seen.shape).masked_fill(~seen, low)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=4 / q.shape[-1] ** 0.5)


def added(q, k, v, seen, low):
    return (q @ k.transpose(-1, -2) * 4 / q.shape[-1] ** 0.5 + (1.0 - seen.float()) * low).softmax(-1) @ v


def subtracted(q, k, v, seen, low):
    return (q @ k.transpose(-1, -2) * 4 / q.shape[-1] ** 0.5 - low * (1.0 - seen.float())).softmax(-1) @ v


def added_twice(q, k, v, seen, low):
    """A causal mask and one of padding, each of them with -1e4, as old BERTs and GPTs have them: what both leave out has -2e4."""
    causal = torch.ones(seen.shape[-2:]).tril()
    scores = q @ k.transpose(-1, -2) * 4 / q.shape[-1] ** 0.5 + (1 - causal) * low
    return (scores + (1.0 - seen[..., -1:, :].float()) * low).log_softmax(-1).exp() @ v


WAYS = {
    "sdpa, bool": (with_sdpa, None),
    "sdpa, -inf": (with_sdpa, -torch.inf),
    "written out, -1e9": (written_out, -1e9),
    "written out, finfo.min": (written_out, LOWEST),
    "sdpa, -1e4": (with_sdpa, -1e4),
    "added, -1e4": (added, -1e4),
    "added, -1e5": (added, -1e5),
    "subtracted, 1e4": (subtracted, 1e4),
    "added twice, -1e4": (added_twice, -1e4),
}


class Attention(nn.Module):
    def __init__(self, way: str):
        super().__init__()
        self.attend, self.low = WAYS[way]
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (part(x).view(batch, length, 4, 8).transpose(1, 2) for part in (self.q, self.k, self.v))
        seen = torch.ones(length, length, dtype=torch.bool).tril() & keep[:, None, None, :].bool()
        return self.attend(q, k, v, seen, self.low).transpose(1, 2).reshape(batch, length, 32)


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    keep = torch.ones(2, 16, dtype=torch.long)
    keep[1, slice(0, 6) if side == "left" else slice(10, 16)] = 0
    return torch.randn(2, 16, 32), keep


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("way", WAYS)
def test_queries_that_see_nothing_are_as_in_eager(way, side):
    """The loss reads every position, those of the padding too."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    ours = Attention(way)
    eager = copy.deepcopy(ours)
    x, keep = padded(side)
    grad = torch.randn(2, 16, 32)
    outputs = []
    for model in (compile_for_twin(ours), eager):
        outputs.append(model(x, keep))
        outputs[-1].backward(grad)
    assert torch.isfinite(outputs[1]).all()
    # weights, scores, softmax and a product, each rounded to fp16
    assert distance(*outputs) < 8 * 2**-11
    for (name, mine), theirs in zip(ours.named_parameters(), eager.parameters(), strict=True):
        if name != "k.bias":  # zero but for rounding: a softmax does not see it
            assert distance(mine.grad, theirs.grad) < 8 * 2**-11, name


def test_a_row_of_finite_lowest_numbers_is_even_as_in_the_plain_formula():
    """torch's fused CPU kernel has another gradient there than its own plain formula, which ours follows. Scores stay
    below 4: a sum with -1e4 absorbs no more in fp16 (docs/limits.md)."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    x, keep = padded("left")
    q, k, v = (torch.randn(2, 1, 16, 8) * size for size in (0.3, 0.3, 1.0))
    seen = torch.ones(16, 16, dtype=torch.bool).tril() & keep[:, None, None, :].bool()
    found = []
    for attend in (torch.compile(with_sdpa, backend="ane", options={"device": "twin"}), with_sdpa):
        leaves = [each.clone().requires_grad_() for each in (q, k, v)]
        with sdpa_kernel(SDPBackend.MATH):
            attend(*leaves, seen, LOWEST).sum().backward()
        found.append(leaves[2].grad)
    assert distance(*found) < 8 * 2**-11


def test_a_mask_that_is_given_may_leave_rows_out_with_a_number_that_float32_adds():
    """-1e4 plus a score has no digits of the score in fp16. A learned bias is no mask."""
    torch._dynamo.reset()
    layer, bias = nn.Linear(8, 8), nn.Parameter(torch.randn(16, 16))
    x, mask = torch.randn(2, 16, 8), torch.zeros(2, 16, 16)
    mask[:, 3], mask[:, 5], mask[:, 5, :8] = -1e4, 20.0, 30.0
    compiled = compile_for_twin(lambda x, mask: (layer(x) @ x.mT + bias + mask).softmax(-1) @ x)
    got, want = compiled(x, mask), (layer(x) @ x.mT + bias + mask).softmax(-1) @ x
    for gradient, right in zip(*(torch.autograd.grad(y.square().sum(), [bias, layer.weight]) for y in (got, want)), strict=True):
        assert distance(gradient, right) < 8 * 2**-11
    assert distance(got, want) < 8 * 2**-11


def test_a_mask_that_softmaxes_along_two_axes_read_stays_as_it_is():
    """What is taken off a row changes a softmax along its columns."""
    torch._dynamo.reset()
    layer, x, mask = nn.Linear(8, 8), torch.randn(16, 8), torch.zeros(16, 16)
    mask[:, :3], mask[4] = 6.0, -5.0

    def slots(x, mask):
        scores = layer(x) @ x.T * 0.3 + mask
        return scores.softmax(-1), scores.softmax(0)

    for got, want in zip(compile_for_twin(slots)(x, mask), slots(x, mask), strict=True):
        assert distance(got, want) < 8 * 2**-11


def test_two_masks_that_several_scores_share_are_added_before_all_of_them():
    torch._dynamo.reset()
    layer, x = nn.Linear(8, 8), torch.randn(16, 8)
    first, second = torch.zeros(16, 16), torch.zeros(16, 16)
    first[3, :9], second[3, 9:] = -1e4, -1e4

    def attend(x, first, second):
        early, late = (layer(x + shift) @ x.T + first + second for shift in (0.0, 0.5))
        return late.softmax(-1) @ x, early.softmax(-1) @ x

    for got, want in zip(compile_for_twin(attend)(x, first, second), attend(x, first, second), strict=True):
        assert distance(got, want) < 8 * 2**-11


def test_a_mask_of_minus_1e9_keeps_its_rows_even():
    """float32 has no digits of a score beside -1e9, and neither have we."""
    torch._dynamo.reset()
    layer, x, mask = nn.Linear(8, 8), torch.randn(16, 8), torch.zeros(16, 16)
    mask[3] = -1e9
    got = compile_for_twin(lambda x, mask: (layer(x) @ x.T * 0.3 + mask).softmax(-1))(x, mask)
    torch.testing.assert_close(got[3], torch.full((16,), 1 / 16), rtol=1e-3, atol=0)


def test_scores_without_a_mask_or_with_a_causal_one_cost_nothing_more():
    """No row of them can be empty, so that no program asks for a row's maximum."""
    from torchane.capture import backend

    torch._dynamo.reset()
    q = torch.randn(1, 2, 16, 8, requires_grad=True)
    compiled = torch.compile(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), backend="ane", options={"device": "twin"})
    compiled(q)
    counts = backend.COMPILED[-1].plans["forward"].op_counts()
    assert counts["softmax"] == 1
    assert counts["reduce_max"] == 0


@pytest.mark.parametrize("value", [-1e9, -80000.0, 1e9])
def test_data_beyond_fp16_is_not_taken_for_a_mask(value):
    """-1e9 means "left out" only where a softmax is all that reads it."""
    torch._dynamo.reset()
    model = nn.Linear(2, 2)
    x = torch.tensor([[value, 0.5], [0.5, 0.5]])
    want = model(x)
    with torch.no_grad(), pytest.warns(TorchaneWarning, match=r"The input \S+ holds .*, above fp16's 65504"):
        torch.testing.assert_close(compile_for_twin(model, precision="fp16")(x), want)


BEYOND = {
    "added": lambda x: x * 0.5 + 1e5,
    "subtracted with a factor": lambda x: torch.sub(x * 0.5, 5e4, alpha=2),
    "subtracted from": lambda x: 1e5 - x * 0.5,
    "a tensor": lambda x: x * 0.5 * torch.tensor([1e5, -2e5, 3.0, 0.0]),
    "selected": lambda x: torch.where(x > 0, x * 0.5, -80000.0),
}


@pytest.mark.parametrize("way", BEYOND)
def test_a_constant_beyond_fp16_that_is_no_mask_is_left_to_the_host(way):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, x):
            return BEYOND[way](self.first(x))

    torch._dynamo.reset()
    model, x = Model(), torch.tensor([[1.0, 2.0, -3.0, 4.0]])
    with torch.no_grad():
        want = model(x)
        with pytest.warns(TorchaneWarning, match="65504|infinite or NaN"):
            torch.testing.assert_close(compile_for_twin(model, precision="fp16")(x), want, rtol=5e-3, atol=1e-2)
