"""What is returned, compared or tested for infinity is eager's -inf; what a softmax alone reads stays in programs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchane.capture import backend
from torchane.capture.policies.left_out import LEAVES

pytestmark = pytest.mark.filterwarnings("ignore::torchane.errors.TorchaneWarning")

INF = float("inf")
torch.manual_seed(0)
FIRST, SECOND = nn.Linear(32, 32), nn.Linear(32, 32)
X = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
KEPT = torch.rand(8, 32, generator=torch.Generator().manual_seed(2)) > 0.5
ADDED = torch.zeros(8, 32).masked_fill(~KEPT, -INF)
SEEING = torch.arange(8)[:, None] != 3
TRIANGLE = torch.full((8, 8), -INF).triu(1)

#: Functions of (x, a mask of bool, a mask to add) in which a number for "left out" is read as it is.
LEAVING = {
    "filled and returned": lambda x, m, a: FIRST(x).masked_fill(~m, -INF),
    "selected and returned": lambda x, m, a: torch.where(m, FIRST(x), torch.finfo(torch.float32).min),
    "returned beside its softmax": lambda x, m, a: (lambda s: (s, s.softmax(-1)))(FIRST(x).masked_fill(~m, -1e9)),
    "tested for infinity": lambda x, m, a: SECOND(x) * torch.isinf(FIRST(x).masked_fill(~m, -INF)),
    "compared": lambda x, m, a: torch.where(FIRST(x).masked_fill(~m, -1e9) > -1e8, SECOND(x), 0.0),
    "largest of a column": lambda x, m, a: SECOND(FIRST(x).masked_fill(~m, -1e9).amax(0)),
    "largest of what is left out altogether": lambda x, m, a: FIRST(x).masked_fill(m | ~m, -1e9).amax(0),
    "negative": lambda x, m, a: -FIRST(x).masked_fill(~m, -INF),
    "joined": lambda x, m, a: torch.cat([FIRST(x), torch.full((8, 4), -INF)], 1),
    "padded": lambda x, m, a: F.pad(FIRST(x), (0, 4), value=-INF),
    "a constant triangle": lambda x, m, a: FIRST(x)[:, :8] + TRIANGLE,
    "divided and sorted": lambda x, m, a: (FIRST(x).masked_fill(~m, -INF) / 0.7).sort(-1).values,
    "log of shares": lambda x, m, a: FIRST(x).masked_fill(~m, -INF).log_softmax(-1),
    "added and returned": lambda x, m, a: FIRST(x) + a,
    "added, and returned beside its softmax": lambda x, m, a: (lambda s: (s.softmax(-1), s))(FIRST(x) + a),
    "no less than 0": lambda x, m, a: SECOND(FIRST(x).masked_fill(~m, -INF).relu()),
    "least of a column": lambda x, m, a: FIRST(x).masked_fill(~m, 1e9).amin(0),
    "a million less": lambda x, m, a: FIRST(x) - 1e6,
    "times a constant": lambda x, m, a: FIRST(x) * torch.tensor([1.0, 3e7]).repeat(16),
    "a product with a constant": lambda x, m, a: FIRST(x) @ torch.tensor([[1.0], [3e7]]).repeat(16, 4),
    "more by a constant": lambda x, m, a: FIRST(x) + torch.tensor([1.0, 3e7]).repeat(16),
    "log-sum-exp of a row left out whole": lambda x, m, a: FIRST(x).masked_fill(~(m & SEEING), -INF).logsumexp(-1),
    "log-sum-exp of a row added to": lambda x, m, a: (FIRST(x) + a.masked_fill(~SEEING, -INF)).logsumexp(-1),
    "an input compared": lambda x, m, a: torch.where(a < -1e8, SECOND(x), FIRST(x)),
}  # fmt: skip
#: Those in which nothing can tell.
ABSORBED = {
    "written into scores": lambda x, m, a: written(FIRST(x)).softmax(-1) @ SECOND(x).t(),
    "softmax": lambda x, m, a: FIRST(x).masked_fill(~m, -INF).softmax(-1) @ SECOND(x).t(),
    "an input added": lambda x, m, a: (FIRST(x) + a).softmax(-1) @ SECOND(x).t(),
    "a triangle added": lambda x, m, a: (FIRST(x)[:, :8] + TRIANGLE).softmax(-1) @ SECOND(x),
    "share of two": lambda x, m, a: SECOND(FIRST(x).masked_fill(~m, -INF).sigmoid()),
    "attention": lambda x, m, a: F.scaled_dot_product_attention(FIRST(x)[None], SECOND(x)[None], x[None], attn_mask=m[None, :, :8]),
}  # fmt: skip


def written(scores: Tensor) -> Tensor:
    scores = scores.clone()
    scores[:, :5] = scores[:, :5].masked_fill(KEPT[:, :5], -INF)
    return scores


def both(function, **options) -> list[tuple[Tensor, Tensor]]:
    """(ours, eager's) of each result."""
    torch._dynamo.reset()
    with torch.no_grad():
        want = function(X, KEPT, ADDED)
        got = torch.compile(function, backend=backend.ane, options={"device": "twin", **options})(X, KEPT, ADDED)
    return [(got, want)] if isinstance(want, Tensor) else list(zip(got, want, strict=True))


def check(function, **options) -> None:
    for got, want in both(function, **options):
        largest = want[want.abs() < 1e8].abs().max().item() if (want.abs() < 1e8).any() else 0.0
        torch.testing.assert_close(got, want, rtol=5e-3, atol=5e-3 * max(1.0, largest), equal_nan=True)


@pytest.mark.parametrize("name", LEAVING)
def test_what_is_read_as_it_is_is_eagers(name: str) -> None:
    check(LEAVING[name])


@pytest.mark.parametrize("name", ["log-sum-exp of a row left out whole", "log-sum-exp of a row added to"])
def test_a_logarithm_in_a_program_is_eagers_too(name: str) -> None:
    check(LEAVING[name], chip="m4", precision="fp16")


@pytest.mark.parametrize("name", ABSORBED)
def test_what_a_softmax_reads_stays_in_programs(name: str) -> None:
    check(ABSORBED[name])
    assert not [row for row in backend.COMPILED[-1].rows if row.why == LEAVES]
    assert len(backend.COMPILED[-1].plans["forward"].dispatches) == 1
