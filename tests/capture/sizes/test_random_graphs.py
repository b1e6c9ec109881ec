"""Random graphs of random sizes: a bucket's results and gradients are the exact graph's, whatever lies in its rows beyond.

Beside what the rules put there, rows that a rule calls LOOSE are overwritten with large numbers of the other sign after each op, and rows
that no rule says anything of, those of results, with NaN.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sizes_helpers import BAR, check, served
from torch import fx

from torchane.capture.sizes.axes import State, Value

C = 6
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    torch._dynamo.reset()


#: From (2, s, C) to (2, s, C); w is (C, C).
STEPS: tuple[Step, ...] = (
    lambda x, w: x @ w,
    lambda x, w: torch.tanh(x) + 1,
    lambda x, w: F.gelu(x @ w) * x,
    lambda x, w: F.layer_norm(x, (C,)),
    lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3),
    lambda x, w: F.scaled_dot_product_attention(x, x @ w, x, is_causal=True),
    lambda x, w: F.scaled_dot_product_attention(x @ w, x, x),
    lambda x, w: (x @ w).softmax(1) * x,
    lambda x, w: x - x.mean(1, keepdim=True),
    lambda x, w: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1).sqrt(),
    lambda x, w: torch.cat([x[:, :1], x[:, :-1]], 1) @ w,
    lambda x, w: F.pad(x, (0, 0, 2, 0))[:, :-2] - x,
    lambda x, w: x.flip(1),
    lambda x, w: x.cumsum(1) / (torch.arange(x.shape[1], dtype=x.dtype)[:, None] + 1),
    lambda x, w: (x @ w).sort(1)[0],
    lambda x, w: F.conv1d(x.mT, w[:, :, None].expand(C, C, 3), padding=1).mT,
    lambda x, w: F.silu(F.conv1d(x.mT, w[:, None, :4], padding=3, groups=C)[..., : x.shape[1]].mT),
    lambda x, w: x * torch.sigmoid(x.amax(1, keepdim=True)),
    lambda x, w: x + (x @ w).logsumexp(1, keepdim=True),
    lambda x, w: torch.einsum("bsd,bse,bte->btd", x, x @ w, x) / x.shape[1],
    lambda x, w: (x.view(2, x.shape[1], 2, C // 2).transpose(1, 2) * 2).transpose(1, 2).reshape(2, x.shape[1], C),
    lambda x, w: torch.where(x > 0, x, x @ w),
    lambda x, w: x.masked_fill(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1).any(0)[:, None], 0.5),
    lambda x, w: x.gather(1, x.argsort(1)) + x,
    lambda x, w: F.normalize(x, dim=1),
    lambda x, w: x.roll(3, 1) @ w,
    lambda x, w: x.index_select(1, torch.arange(x.shape[1]).flip(0)) * x,
    lambda x, w: x.log_softmax(1) * 0.1,
)
#: From (2, s, C) to a result whose size may be fixed.
ENDS: tuple[Step, ...] = (
    lambda x, w: x @ w,
    lambda x, w: x.mean(1),
    lambda x, w: x.sum(),
    lambda x, w: x[:, -1] @ w,
    lambda x, w: x[:, -3:],
    lambda x, w: F.mse_loss(x, torch.tanh(x.detach())),
    lambda x, w: x.topk(2, 1)[0],
    lambda x, w: F.cross_entropy(x.reshape(-1, C), x.argmax(-1).reshape(-1)),
    lambda x, w: x.amax((1, 2)),
    lambda x, w: x.flatten(0, 1).pow(2).mean(0),
)


def _graph(seed: int) -> tuple[Callable[..., Any], int]:
    """A function of x and w, with a branch that is joined again, and the size of x."""
    choose = random.Random(seed)
    first, second = ([choose.choice(STEPS) for _ in range(choose.randint(1, 3))] for _ in range(2))
    end, length = choose.choice(ENDS), choose.choice([4, 5, 11, 31, 32, 33, 50])

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y, z = x, x @ w
        for step in first:
            y = step(y, w)
        for step in second:
            z = step(z, w)
        return end(y + z, w)

    return function, length


def _given(seed: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(2, length, C, requires_grad=True), (torch.randn(C, C) / C**0.5).requires_grad_()


class _Spoiled(fx.Interpreter):
    """Runs a bucket's graph; what its rules call LOOSE becomes large numbers, and rows beyond in its results NaN."""

    def __init__(self, bucket: Any, true: Any) -> None:
        super().__init__(bucket.module)
        self.true, self.sizes = dict(true), dict(bucket.sizes)
        self.values = {one.node: one for one in bucket.padded.values.values() if isinstance(one, Value)}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        value = self.values.get(node)
        return result if value is None or not result.is_floating_point() else self.spoiled(result, value, (State.LOOSE,), -1e3)

    def spoiled(self, tensor: torch.Tensor, value: Value, states: tuple[State, ...], number: float) -> torch.Tensor:
        factors = [factor for axis in value.axes for factor in axis]
        shape = [int(f.size.xreplace(self.sizes)) if f.is_padded else f.size for f in factors]
        beyond = torch.zeros(shape, dtype=torch.bool)
        for position, factor in enumerate(factors):
            if factor.is_padded and factor.state in states:
                count = int(factor.size.xreplace(self.true))
                beyond.narrow(position, count, shape[position] - count).fill_(True)
        return torch.where(beyond.reshape(tensor.shape), number, tensor)


def _gradients(results: Any, leaves: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    y = results[0]
    loss = (y * torch.linspace(1, 2, y.numel()).reshape(y.shape)).sum()
    return [y, *torch.autograd.grad(loss, leaves)]


def hold(seed: int) -> None:
    function, length = _graph(seed)
    leaves = _given(seed, length)
    check(function, *leaves)
    found = served(function, *leaves)
    bucket, true, gm, given = found
    exact = _gradients(gm(*given), leaves)
    run = _Spoiled(bucket, true)
    made = run.run(*bucket.given(given, true))
    spoiled = [run.spoiled(one, value, tuple(State), torch.nan) for one, value in zip(made, bucket.padded.results, strict=True)]
    ours = _gradients(bucket.results(spoiled, given, true), leaves)
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=BAR * 10, atol=BAR * 10)


@pytest.mark.parametrize("seed", range(6))
def test_random_graphs(seed: int) -> None:
    hold(seed)


@pytest.mark.long
@pytest.mark.parametrize("start", range(100, 400, 25))
def test_many_random_graphs(start: int) -> None:
    for seed in range(start, start + 25):
        hold(seed)
