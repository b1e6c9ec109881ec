"""Graphs of a bucket against exact ones: every result, gradient and value on the way, in float64, to 1e-9."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sizes_helpers import check, served
from torch.utils.checkpoint import checkpoint

LENGTH, C = 11, 6


@pytest.fixture(autouse=True)
def in_float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch._dynamo.reset()


def parameter(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64, requires_grad=True)


W, TABLE, FILTER = parameter(C, C), parameter(40, C), parameter(C, C, 3)


def x() -> torch.Tensor:
    return torch.randn(2, LENGTH, C, requires_grad=True)


def tokens() -> torch.Tensor:
    return torch.randint(0, C, (2, LENGTH))


def strange() -> torch.Tensor:
    made = torch.randn(2, LENGTH, C)
    made[0, 3:6, 0], made[1, -1], made[1, 2, 1:3], made[0, -2:, 1] = torch.nan, torch.inf, -torch.inf, torch.nan
    return made


def open_ended() -> torch.Tensor:
    made = torch.rand(2, LENGTH, C) + 0.5
    made[:, -1] = 0
    return made


def labels() -> torch.Tensor:
    made = tokens()
    made[0, 3] = -100
    return made


def mask() -> torch.Tensor:
    made = torch.ones(2, LENGTH, dtype=torch.bool)
    made[0, 7:] = False
    return made


def _without_gradient(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scale = (x @ W).mean(-1, keepdim=True)
    return (x @ W) / (1 + scale * scale)


def _written(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    known, y = labels.clone(), (x @ W).clone()
    known[known < 0] = 0
    y[:, :, 0] = 1.0
    y[:, 0] += 2
    return y.sum(-1) + known


def _zeros(x: torch.Tensor) -> torch.Tensor:
    """With zeros in rows that only fill up."""
    return x.softmax(1)


def _put(x: torch.Tensor) -> torch.Tensor:
    made = torch.zeros(2, 30, C, dtype=x.dtype)
    made[:, torch.arange(x.shape[1]) * 2 + 1] = x @ W
    made[:, torch.arange(x.shape[1]) * 2] += x
    return made @ W


#: What a function is given, and the function.
CASES: dict[str, tuple[tuple[Callable[[], torch.Tensor], ...], Callable[..., Any]]] = {
    "linear": ((x,), lambda x: F.gelu(x @ W) @ W),
    "a mean over rows": ((x,), lambda x: (x @ W).mean(1)),
    "a mean over all": ((x,), lambda x: (x @ W).pow(2).mean()),
    "mse": ((x,), lambda x: F.mse_loss(x @ W, x.detach())),
    "bce": ((x,), lambda x: F.binary_cross_entropy_with_logits(x @ W, (x > 0).double())),
    "smooth l1": ((x,), lambda x: F.smooth_l1_loss(x @ W, x.detach())),
    "attention": ((x,), lambda x: F.scaled_dot_product_attention(x, x @ W, x)),
    "causal attention": ((x,), lambda x: F.scaled_dot_product_attention(x, x @ W, x, is_causal=True)),
    "a triangle of -inf": (
        (x,), lambda x: (x @ x.mT).masked_fill(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1), -torch.inf).softmax(-1) @ x),
    "a mask that is added": (
        (x, mask), lambda x, m: ((x @ x.mT) + (1.0 - m[:, None, :].double()) * torch.finfo(torch.float64).min).softmax(-1) @ x),
    "cross entropy, shifted": ((x, labels), lambda x, y: F.cross_entropy((x @ W)[:, :-1].reshape(-1, C), y[:, 1:].reshape(-1))),
    "cross entropy, summed": ((x, labels), lambda x, y: F.cross_entropy((x @ W).transpose(1, 2), y, reduction="sum")),
    "cross entropy, smoothed": ((x, labels), lambda x, y: F.cross_entropy((x @ W).view(-1, C), y.view(-1), label_smoothing=0.1)),
    "cross entropy, padded labels": (
        (x, labels), lambda x, y: F.cross_entropy((x @ W).view(-1, C), F.pad(y, (0, 1), value=-100)[..., 1:].contiguous().view(-1))),
    "learned positions": ((tokens,), lambda i: F.layer_norm(F.embedding(i, TABLE) + TABLE[: i.shape[1]], (C,))),
    "positions": ((tokens,), lambda i: F.embedding(i, TABLE) + F.embedding(torch.arange(i.shape[1]), TABLE)),
    "positions of a mask": ((tokens, mask), lambda i, m: F.embedding((m.long().cumsum(1) - 1).clamp(min=0), TABLE) + F.embedding(i, TABLE)),
    "a mean over a mask": ((x, mask), lambda x, m: ((x @ W) * m[:, :, None]).sum(1) / m.sum(1, keepdim=True)),
    "the last row": ((x,), lambda x: (x @ W)[:, -1]),
    "the last three": ((x,), lambda x: (x @ W)[:, -3:]),
    "the last of a mask": ((x, mask), lambda x, m: (x @ W)[torch.arange(2), m.sum(1) - 1]),
    "shifted": ((x,), lambda x: torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1) @ W),
    "a row in front": ((x,), lambda x: torch.cat([W[:1].expand(2, 1, C), x], 1) @ W),
    "rows behind": ((x,), lambda x: torch.cat([x, W[:2].expand(2, 2, C)], 1) @ W),
    "twice": ((x,), lambda x: torch.cat([x, x @ W], 1).mean(1)),
    "a maximum": ((x,), lambda x: (x @ W).amax(1)),
    "logsumexp": ((x,), lambda x: (x @ W).logsumexp(1)),
    "cumulative sums": ((x,), lambda x: (x @ W).cumsum(1).exp().log()),
    "the size as a number": ((x,), lambda x: (x @ W) / x.shape[1] + x.shape[1] * x),
    "a logarithm": ((x,), lambda x: ((x @ W).exp() + 1).log().sum((1, 2))),
    "rotated": ((x,), lambda x: x * torch.outer(torch.arange(x.shape[1]).double(), torch.ones(C)).sin()),
    "gathered rows": ((x, mask), lambda x, m: (x @ W).gather(1, (m.sum(1) - 1)[:, None, None].expand(2, 1, C))),
    "selected": ((x, mask), lambda x, m: torch.where(m[..., None], x @ W, x)),
    "heads": ((x,), lambda x: (x @ W).view(2, x.shape[1], 3, 2).transpose(1, 2).reshape(6, x.shape[1], 2).softmax(1)),
    "relative positions": (
        (x,), lambda x: TABLE[(torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])).clamp(-8, 8) + 8].sum(-1) + x @ x.mT),
    "a norm over rows": ((x,), lambda x: F.normalize(x @ W, dim=1)),
    "a variance over rows": ((x,), lambda x: (x @ W).var(1)),
    "a product over rows": ((x,), lambda x: torch.einsum("bsd,bse->bde", x, x @ W)),
    "no gradient inside": ((x,), _without_gradient),
    "one-hot": ((x, tokens), lambda x, y: (x @ W * F.one_hot(y, C)).sum(-1)),
    "dropout": ((x,), lambda x: F.dropout(F.dropout(x, 0.3, True) @ W, 0.5, True) + torch.rand_like(x)),
    "written to": ((x, labels), _written),
    "differences": ((x,), lambda x: (x[:, 1:] - x[:, :-1]).abs().mean()),
    "log-softmax over rows": ((x,), lambda x: ((x @ W).log_softmax(1) * x, (x @ W).log_softmax(1).mean(1), F.kl_div(x.log_softmax(1), (x @ W).log_softmax(1), reduction="sum", log_target=True))),
    "flipped": ((x,), lambda x: (x.flip(1) @ W).cumsum(1).flip(1)),
    "rolled": ((x,), lambda x: torch.roll(x @ W, (2, -1), (1, 2)) + x.roll(-3, 1)),
    "sorted": ((x,), lambda x: ((x @ W).sort(1)[0], (x @ W).argsort(1, descending=True), x.sort(-1)[0] @ W)),
    "sorted, infinities and NaN": ((strange,), lambda x: (x.sort(1), x.sort(1, descending=True), x.argsort(dim=1, stable=True))),
    "the largest": ((x,), lambda x: (x @ W).topk(3, 1)),
    "the smallest": ((x,), lambda x: (x @ W).topk(2, 1, largest=False)),
    "the place of a maximum": ((x, tokens), lambda x, y: ((x @ W).max(1), x.argmax(1), x.min(1)[0], y.argmin(1), y.max(1)[1])),
    "the place of -inf": ((strange,), lambda x: (x.argmax(1), x.masked_fill(x < 9, -torch.inf).argmax(1))),
    "cumulative products": ((x,), lambda x: (1 + 0.1 * torch.tanh(x @ W)).cumprod(1).mean(1)),
    "a product of rows": ((x,), lambda x: (1 + 0.1 * torch.tanh(x @ W)).prod(1)),
    "a convolution over rows": ((x,), lambda x: F.conv1d((x @ W).mT, FILTER, W[0], padding=1).mT @ W),
    "a causal convolution": ((x,), lambda x: F.silu(F.conv1d(x.mT, FILTER[:, :1], padding=2, groups=C)[..., : x.shape[1]]).mT @ W),
    "dilated": ((x,), lambda x: F.conv1d(x.mT, FILTER, padding=2, dilation=2).mean(-1)),
    "narrowing": ((x,), lambda x: F.conv1d(x.mT, FILTER).softmax(-1)),
    "cut in parts": ((x,), lambda x: [part @ W for part in (x @ W).split([2, x.shape[1] - 5, 3], 1)]),
    "rows copied": ((x, tokens), lambda x, y: torch.zeros(2, 30, C, dtype=x.dtype).index_copy(1, torch.arange(3, x.shape[1] + 3), x @ W) @ W),
    "rows put": ((x,), lambda x: _put(x)),
    "scattered": ((x,), lambda x: torch.zeros_like(x).scatter(-1, (x @ W).topk(2, -1)[1], 1.0) * x + torch.zeros_like(x).scatter_add(-1, (x @ W).argmax(-1, keepdim=True), x[..., :1])),
    "a norm written out, of rows that are no copies": (
        (x,), lambda x: (y := F.conv1d(x.mT, FILTER, padding=1).mT) * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) / y[:, :1].exp().sum(-1, keepdim=True)),
    "zeros are no zeros after a softmax": ((x,), lambda x: (_zeros(x) @ x.mT).softmax(-1).sum((1, 2)) + _zeros(x).softmax(-1).sum((1, 2)) + _zeros(x).logsumexp(-1).sum(1)),
    "zeros are no zeros with a bias": ((x,), lambda x: (_zeros(x) + W[0]).sum(1) + (_zeros(x) + x.shape[1]).mean(1) + torch.maximum(_zeros(x), W[1]).sum(1)),
    "zeros are no zeros beside a number": ((x,), lambda x: F.pad(_zeros(x), (0, 1), value=2.0).sum(1)),
    "whether any number is none, and all": (
        (x,), lambda x: ((x > 9).any(1), (x * (x > 9)).any(1), (x * (x > 9)).any(), (x * (x > -9)).all(1), (_zeros(x) > 0.9).any(1), (F.conv1d(x.mT, FILTER, padding=1) < 99).all(-1))),
    "divided by zeros": ((x,), lambda x: ((W[0] / _zeros(x)).sum(1), (x / _zeros(x)).sum(1), torch.remainder(x, _zeros(x)).sum(1))),
    "whole numbers divided by zeros": ((tokens, x), lambda y, x: y % (_zeros(x)[..., 0] > 0).long()),
    "the last row is infinite": (
        (x,), lambda x: torch.where((torch.arange(x.shape[1]) < x.shape[1] - 1)[:, None], x, -torch.inf).detach().sum(1).exp()),
    "one number written to many rows": ((x,), lambda x: torch.ones(2, 30, C).index_put((torch.tensor(0), torch.arange(x.shape[1]).clamp(max=4)), W[0]) * x.sum()),
    "random places": (
        (x,), lambda x: x[:, torch.randperm(x.shape[1])] @ W + x[:, torch.randint(x.shape[1], (x.shape[1],))] + torch.randint(2, 5, (x.shape[1], 1))),
    "random numbers that fill": ((x,), lambda x: x + torch.zeros_like(x).normal_(1, 2) + torch.zeros_like(x).uniform_(1, 2) + torch.zeros_like(x).exponential_()),
    "checkpointed": ((x,), lambda x: checkpoint(lambda y: torch.tanh(torch.tanh(y @ W)) @ W, x @ W, use_reentrant=False).mean(1)),
    "a size given back": ((x,), lambda x: (x @ W, x.shape[1] * 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_fills_up_changes_nothing(name: str) -> None:
    given, function = CASES[name]
    check(function, *(make() for make in given), dynamic=[(i, 1) for i in range(len(given))])


def test_a_last_row_that_is_infinite_and_cut_off() -> None:
    """It lies beyond the true rows of what is left: 0 times it is NaN."""
    check(lambda x: (x.log()[:, :-1].mean(1), x.log()[:, :-1].mT @ x[:, :-1], (x.log() * 2)[:, :-1].exp()), open_ended(), looks_inside=False)


def _shifted_right(tokens: torch.Tensor) -> torch.Tensor:
    made = torch.zeros_like(tokens)
    made[:, 1:] = tokens[:, :-1].clone()
    made[:, 0] = 3
    return F.embedding(made, TABLE)


def test_tokens_shifted_to_the_right() -> None:
    check(_shifted_right, tokens())


def test_sizes_that_must_be_equal_are_one() -> None:
    """The graph holds for equal ones alone: a call with others is none of its calls."""
    bucket, true, gm, given = served(lambda x, y: (x @ W) + y, x(), torch.randn(2, LENGTH, C), dynamic=[(0, 1), (1, 1)])
    assert len(true) == 1 and bucket.sizes.keys() == true.keys()


def test_batch_and_length_vary_together() -> None:
    check(
        lambda x, y: F.cross_entropy((F.scaled_dot_product_attention(x, x @ W, x) @ W).view(-1, C), y.view(-1)),
        torch.randn(5, LENGTH, C, requires_grad=True), torch.randint(0, C, (5, LENGTH)), dynamic=[(0, 0), (0, 1), (1, 0), (1, 1)],
    )  # fmt: skip


def test_rows_of_an_index_vary() -> None:
    """As in a mixture of experts."""
    rows = torch.tensor([0, 3, 5, -1, 8])
    check(lambda y, x, r: y.index_add(0, r.clamp(min=0), torch.tanh(x[r] @ W)), torch.zeros(10, C), torch.randn(10, C, requires_grad=True), rows, dynamic=[(2, 0)])


def test_counts_of_rows_that_vary() -> None:
    """One number added at each place of an index: its copies beyond the last true row add nothing."""
    rows = torch.tensor([0, 3, 5, 3, 8, 8, 8])
    check(lambda r: torch.zeros(10).index_put((r,), torch.ones(()), accumulate=True), rows, dynamic=[(0, 0)])
    check(lambda r: torch.zeros(10, C).index_put((r,), W[0], accumulate=True) @ W, rows, dynamic=[(0, 0)])


def test_results_that_share_memory() -> None:
    """What is written to one is there in all that are views of it."""

    def several(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.tanh(x @ W.detach())
        return y, y[:, 0], y.view(2, -1), y.detach(), y[:, 1:].mT, y * 2

    given = x().detach()
    check(several, given)
    bucket, true, gm, args = served(several, given)
    ours, right = bucket.results(bucket.module(*bucket.given(args, true)), args, true), several(given)
    for results in (ours, right):
        results[0].add_(5)
        results[4].mul_(3)
    assert all(torch.allclose(a, b) and a.stride() == b.stride() for a, b in zip(ours, right, strict=True))


def test_a_growing_cache() -> None:
    """One row more at each step: it lies behind the last true one."""

    def step(keys: torch.Tensor, new: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        whole = torch.cat([keys, new], 1)
        return F.scaled_dot_product_attention(new, whole, whole, attn_mask=mask[:, None, :]), whole

    check(step, x(), torch.randn(2, 1, C), torch.ones(2, LENGTH + 1, dtype=torch.bool), dynamic=[(0, 1), (2, 1)])


#: What is compiled for exact sizes, and what is said of it.
EXACT: dict[str, tuple[Callable[..., Any], str]] = {
    "a convolution with strides": (lambda x: F.conv1d(x.mT, FILTER, padding=1, stride=2), "a convolution with a stride along an axis whose size varies in test_padded.py"),
    "a transposed convolution": (lambda x: F.conv_transpose1d(x.mT, FILTER), "a transposed convolution along an axis"),
    "the k-th": (lambda x: x.kthvalue(2, 1)[0] @ W, "aten.kthvalue.default along an axis whose size varies in test_padded.py"),
    "the median": (lambda x: (x @ W).median(1)[0], "aten.median.dim along an axis"),
    "as many as there are rows": (lambda x: (x @ W).topk(x.shape[1], 1)[0], "topk of a number that varies"),
    "rows counted in a gradient": (
        lambda x: F.embedding((x[..., 0] > 0).long(), TABLE, scale_grad_by_freq=True).sum(1), "a look-up whose gradient is divided by how often"),
    "views of one value": (lambda x: (lambda y: (y[:, 1:], y.mT))(x @ W), "two results are views of one value"),
    "halves": (lambda x: (x @ W)[:, : x.shape[1] // 2], "does not grow with those"),
    "rows in pairs": (lambda x: (x @ W).reshape(2, C, x.shape[1]), "a reshape mixes a size that varies"),
    "an inverse of rows": (lambda x: torch.tanh(x @ W)[:, :-1].erfinv(), "may be infinite or NaN"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_what_is_not_proven_is_exact_by_name(name: str) -> None:
    function, reason = EXACT[name]
    found = served(function, x())
    assert isinstance(found, str) and reason in found, found
