"""What cancels behind a product: moments, distances, offsets, recursions, small rows. Each is as good as the better autocast.

Every family is crossed with what comes before it (the size and the offset of the product's results) and with what reads it.
"""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from autocast import Compared, compared
from torch import Tensor, nn

Form = Callable[[Tensor, Tensor], Tensor]


class Behind(nn.Module):
    """A form of the results of a product, h (16, 32) times a size plus an offset, and of the product's weight; read by a product."""

    def __init__(self, form: Form, size: float, offset: float, is_read: bool) -> None:
        super().__init__()
        self.form, self.size, self.offset, self.is_read = form, size, offset, is_read
        self.w, self.v = nn.Parameter(torch.randn(32, 32) / 32**0.5), nn.Parameter(torch.randn(32, 32) / 32**0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.w
        h = h if self.size == 1 else h * self.size
        h = h if self.offset == 0 else h + self.offset
        y = self.form(h, self.v)
        return y @ self.v[: y.shape[-1]] if self.is_read else y


def moments(h: Tensor, *, axis: int = -1) -> tuple[Tensor, Tensor]:
    mean = h.mean(axis, keepdim=True)
    return mean, (h * h).mean(axis, keepdim=True) - mean * mean


def of_sums(h: Tensor) -> Tensor:
    total = h.sum(-1, keepdim=True)
    return (h - total / 32) * ((h.square().sum(-1, keepdim=True) - total * total / 32) / 31 + 1e-5).rsqrt()


def recursion(h: Tensor, v: Tensor) -> Tensor:
    scores = h.view(2, 8, 32)[:, :, :6]
    total = scores[:, 0]
    for step in range(1, 8):
        total = torch.logsumexp(total[:, :, None] + v[None, :6, :6] + scores[:, step][:, None], 1)
    return total


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return a.square().sum(-1)[:, None] + b.square().sum(-1)[None] - 2 * a @ b.T


FORMS: dict[str, Form] = {
    "moments, rsqrt": lambda h, v: (h - moments(h)[0]) * torch.rsqrt(moments(h)[1] + 1e-5),
    "moments, sqrt": lambda h, v: h / torch.sqrt(moments(h)[1].clamp(min=0) + 1e-5),
    "moments of columns": lambda h, v: (h - moments(h, axis=0)[0]) / (moments(h, axis=0)[1] + 1e-5).sqrt(),
    "moments by sums": lambda h, v: of_sums(h),
    "distances to rows of a weight": lambda h, v: torch.exp(-squared_distances(h, v) / 32),
    "distances among rows": lambda h, v: torch.exp(-squared_distances(h, h) / 4),
    "distances, addmm": lambda h, v: 1 / (1 + torch.addmm((n := h.square().sum(-1, keepdim=True)) + n.T, h, h.T, alpha=-2).clamp(min=0)),
    "distances, softmax": lambda h, v: torch.softmax(-squared_distances(h, v), -1),
    "log-sum-exp, again and again": recursion,
    "by a norm of 1e-8": lambda h, v: h / (h.norm(dim=-1, keepdim=True) + 1e-8),
    "by a root of 1e-12": lambda h, v: h / (h.square().sum(-1, keepdim=True) + 1e-12).sqrt(),
    "by a variance of 1e-12": lambda h, v: (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True) + 1e-12).sqrt(),
    "layer norm of 1e-12": lambda h, v: F.layer_norm(h, (32,), eps=1e-12),
    "an offset taken away": lambda h, v: torch.softmax(h + torch.linspace(999, 1001, 32, dtype=h.dtype) - 1000, -1),
    "a weight's offset taken away": lambda h, v: torch.softmax(h + (v[0] * 1 + 1000) - 1000, -1),
}
BEFORE = [(1.0, 0.0), (1.0, 4.0), (1e-5, 0.0), (30.0, 0.0)]
#: Where it falls short: probabilities of 1e-8 that a product reads are beneath fp16's digits (docs/limits.md).
KNOWN = {("distances to rows of a weight", 1.0, 4.0)}
CASES = [case for form, before in itertools.product(FORMS, BEFORE) if (case := (form, *before)) not in KNOWN]


def is_right(found: Compared) -> bool:
    """No further off than 1.5 times the better autocast, or a bf16's rounding; where that is 10 % off, nothing is asked."""
    return found.autocast > 0.1 or found.ours <= max(1.5 * found.autocast, 2.0**-7)


@pytest.mark.parametrize(("form", "size", "offset"), [case for case in CASES if case[1:] == (1.0, 0.0)][::4])
def test_what_cancels_behind_a_product_is_as_good_as_autocast(form: str, size: float, offset: float) -> None:
    found = compared(lambda: (Behind(FORMS[form], size, offset, True), [torch.randn(16, 32)]))
    assert is_right(found), found


@pytest.mark.long
@pytest.mark.parametrize("is_read", [False, True], ids=["returned", "read by a product"])
@pytest.mark.parametrize(("form", "size", "offset"), CASES)
def test_every_form_after_every_size_is_as_good_as_autocast(form: str, size: float, offset: float, is_read: bool) -> None:
    found = compared(lambda: (Behind(FORMS[form], size, offset, is_read), [torch.randn(16, 32)]))
    assert is_right(found), found


def test_a_variance_of_small_rows_made_large_again_keeps_its_digits() -> None:
    found = compared(lambda: (Behind(lambda h, v: h.var(-1, keepdim=True) * 1e10, 1e-5, 0.0, False), [torch.randn(16, 32)]))
    assert is_right(found), found


@pytest.mark.parametrize("factor", [1e-5, 2e4])
def test_a_constant_that_takes_numbers_to_fp16s_ends_is_the_hosts(factor: float) -> None:
    found = compared(lambda: (Behind(lambda h, v: torch.tanh((h * factor).mean(-1, keepdim=True) / factor + h), 1, 0, True), [torch.randn(16, 32)]))
    assert is_right(found), found
