"""Selections whose untaken branch is infinite or NaN, whole: value and gradients beside eager float32."""

import random
from collections.abc import Callable

import pytest
import torch
import torch.distributions as D
import torch.nn.functional as F
from capture_helpers import distance
from torch import Tensor, nn

from torchane.capture import backend
from torchane.errors import NumericsError

pytestmark = pytest.mark.filterwarnings("ignore::torchane.errors.TorchaneWarning")

#: Two products, each with its operands and result rounded to fp16, and what lies between them.
TOLERANCE = 16 * 2**-11

torch.manual_seed(0)
LINEAR = nn.Linear(16, 16)
SHARE = torch.rand(4, 16)
TARGET = torch.randn(4, 16)
TARGET[0, 2] = TARGET[3, 5] = torch.nan
IS_THERE = ~TARGET.isnan()
FAR = TARGET.nan_to_num(1e20)


def p(x: Tensor) -> Tensor:
    return x.sigmoid() * 0.8 + 0.1


CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "1 / x, guarded": lambda x: LINEAR(torch.where(LINEAR(x) > 0.5, 1 / LINEAR(x), 0.0)),
    "an exponential of what is not taken": lambda x: LINEAR(torch.where(LINEAR(x) < 0, (20 * LINEAR(x)).exp(), 1 + LINEAR(x))),
    "a logarithm": lambda x: torch.where(LINEAR(x) > 0.3, LINEAR(x).log(), LINEAR(x)),
    "a clamped logarithm": lambda x: LINEAR(LINEAR(x).clamp(min=0.05).log()),
    "a root under a relu": lambda x: LINEAR(torch.where(x > 0.1, x.relu().sqrt(), 0.0)),
    "a safe division": lambda x: torch.where(x.abs() > 0.1, LINEAR(x) / torch.where(x.abs() > 0.1, x, 1.0), 0.0),
    "a masked quotient": lambda x: LINEAR((LINEAR(x) / x).masked_fill(x.abs() < 0.2, 0.0)),
    "elu by hand": lambda x: torch.where(LINEAR(x) > 0, LINEAR(x) * 30, (LINEAR(x) * 30).exp() - 1),
    "softplus by hand": lambda x: torch.where(30 * LINEAR(x) > 20, 30 * LINEAR(x), (30 * LINEAR(x)).exp().log1p()),
    "softplus with a low threshold": lambda x: F.softplus(30 * LINEAR(x), threshold=5),
    "elu, selu and celu of large numbers": lambda x: F.elu(30 * LINEAR(x)) + F.selu(30 * LINEAR(x)) + F.celu(30 * LINEAR(x), 0.5),
    "huber of 300": lambda x: F.huber_loss(300 * LINEAR(x), SHARE, delta=0.7) + F.smooth_l1_loss(300 * LINEAR(x), SHARE),
    "gumbel_softmax": lambda x: F.gumbel_softmax(LINEAR(x), tau=0.5),
    "gumbel_softmax, hard": lambda x: F.gumbel_softmax(LINEAR(x), tau=0.5, hard=True) * LINEAR(x),
    "sinc and entropy": lambda x: torch.sinc(LINEAR(x)) + torch.special.entr(LINEAR(x).softmax(-1)),
    "logaddexp": lambda x: torch.logaddexp(LINEAR(x), 20 * x),
    "logcumsumexp": lambda x: LINEAR(torch.logcumsumexp(LINEAR(x), -1)),
    "a normalised row of zeros": lambda x: F.normalize(LINEAR(x) * torch.tensor([[1.0], [0.0], [1.0], [1.0]])),
    "logit with eps": lambda x: torch.logit(LINEAR(x).sigmoid(), eps=0.05),
    "kl_div to a target with zeros": lambda x: F.kl_div(LINEAR(x).log_softmax(-1), SHARE * (SHARE > 0.3), reduction="batchmean"),
    "binary_cross_entropy": lambda x: F.binary_cross_entropy(LINEAR(x).sigmoid(), SHARE),
    "Gamma.log_prob": lambda x: D.Gamma(p(LINEAR(x)) + 1, p(x)).log_prob(SHARE + 0.1),
    "Bernoulli's entropy": lambda x: D.Bernoulli(probs=p(LINEAR(x))).entropy(),
    "a missing target": lambda x: torch.where(TARGET.isnan(), 0.0, LINEAR(x) - TARGET).square().mean(),
    "a target that a mask leaves out": lambda x: torch.where(IS_THERE, LINEAR(x) - TARGET, 0.0).square().sum(),
    "a far target that a mask leaves out": lambda x: torch.where(IS_THERE, LINEAR(x) - FAR, 0.0).square().sum(),
    "missing values filled": lambda x: LINEAR(LINEAR(x) + torch.nan_to_num(TARGET, nan=0.5)),
    "missing values by ~isfinite": lambda x: LINEAR(x) * TARGET.masked_fill(~TARGET.isfinite(), 0.0),
    "norms of rows that are zero": lambda x: (LINEAR(x) * torch.tensor([[1.0], [0.0], [1.0], [1.0]])).norm(dim=-1),
    "standardised where a mask says": lambda x: torch.where(
        IS_THERE, (LINEAR(x) - LINEAR(x).mean(-1, keepdim=True)) / (LINEAR(x).std(-1, keepdim=True) + 1e-6), 0.0
    ),
}


def beside_eager(function: Callable[[Tensor], Tensor], seed: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """Result and gradients (of x and of the weight, where there are such), the twin's and eager's."""
    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend.ane, options={"device": "twin"})
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))
    found = []
    for call in (compiled, function):
        torch.manual_seed(2)
        leaf = x.clone().requires_grad_()
        y = call(leaf)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
        gradients = torch.autograd.grad(y, [leaf, LINEAR.weight], grad, allow_unused=True)
        found.append([y.detach(), *(g for g in gradients if g is not None)])
    return found[0], found[1]


@pytest.mark.parametrize("name", CASES)
def test_neither_branch_poisons_the_other(name: str) -> None:
    ours, eager = beside_eager(CASES[name])
    for mine, theirs in zip(ours, eager, strict=True):
        assert theirs.isfinite().all()
        assert distance(mine, theirs) < TOLERANCE


#: (what is dangerous, where it is not)
DANGERS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "1 / v": (lambda v: 1 / v, lambda v: v.abs() > 0.4),
    "exp": (lambda v: (20 * v).exp(), lambda v: v < 0.1),
    "expm1": (lambda v: (20 * v).expm1(), lambda v: v < 0.1),
    "log": (lambda v: v.log(), lambda v: v > 0.4),
    "log1p": (lambda v: v.log1p(), lambda v: v > -0.5),
    "sqrt": (lambda v: v.sqrt(), lambda v: v > 0.4),
    "rsqrt": (lambda v: v.rsqrt(), lambda v: v > 0.4),
    "v ** -1.5": (lambda v: v**-1.5, lambda v: v > 0.4),
    "v ** 0.3": (lambda v: v**0.3, lambda v: v > 0.4),
    "(300 v) ** 2": (lambda v: (300 * v) ** 2 * 1e-3, lambda v: v.abs() < 0.4),
    "acos": (lambda v: v.acos(), lambda v: v.abs() < 0.7),
    "a NaN": (lambda v: torch.full_like(v, torch.nan), lambda v: v > 9),
    "an infinity": (lambda v: v * torch.tensor(torch.inf), lambda v: v > 99),
}
SOURCES = {"x": lambda x: x, "a product": LINEAR, "two": lambda x: LINEAR(LINEAR(x)), "relu": lambda x: LINEAR(x).relu(), "sum": lambda x: x + LINEAR(x)}
BETWEEN = {
    "nothing": lambda b, x: b, "times": lambda b, x: b * LINEAR(x), "plus": lambda b, x: b + LINEAR(x), "minus": lambda b, x: -b * 0.5,
    "moved": lambda b, x: b.view(2, 2, 16).transpose(0, 1).transpose(0, 1).reshape(4, 16), "abs": lambda b, x: b.abs(),
}  # fmt: skip
STYLES = {
    "where": lambda m, b, o: torch.where(m, b, o), "turned": lambda m, b, o: torch.where(~m, o, b),
    "two conditions": lambda m, b, o: torch.where(m & (o < 1.5), b, o), "masked_fill": lambda m, b, o: b.masked_fill(~m, 0.0) + o,
    "copied": lambda m, b, o: torch.where(m, torch.where(m, b, 0.0), o),
}  # fmt: skip
OTHERS = {"zeros": lambda x: 0 * x, "x": lambda x: x, "a product": LINEAR}
AFTER = {
    "nothing": lambda y, x: y, "a product": lambda y, x: LINEAR(0.1 * y), "times x": lambda y, x: y * x, "tanh": lambda y, x: (0.2 * y).tanh(),
    "softmax": lambda y, x: (0.2 * y).softmax(-1), "a sum": lambda y, x: y.sum(-1), "relu": lambda y, x: (0.5 * y).relu(),
}  # fmt: skip


def drawn(seed: int) -> Callable[[Tensor], Tensor]:
    """A selection of random parts, of which one is dangerous where it is not taken."""
    rng = random.Random(seed)
    source, between, style, other, after = (rng.choice(list(parts.values())) for parts in (SOURCES, BETWEEN, STYLES, OTHERS, AFTER))
    danger, is_safe = rng.choice(list(DANGERS.values()))

    def function(x: Tensor) -> Tensor:
        v = source(x)
        return after(style(is_safe(v), between(danger(v), x), other(x)), x)

    return function


@pytest.mark.parametrize("seed", [*range(8), 183, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(8, 250) if seed != 183)])
def test_random_selections_are_eagers(seed: int) -> None:
    """Where eager's own gradients are NaN (0 times a true infinity) an error may say so; nothing else may differ."""
    try:
        ours, eager = beside_eager(drawn(seed), seed)
    except NumericsError:
        x = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        y = drawn(seed)(x)
        gradients = torch.autograd.grad(y.sum(), [x, LINEAR.weight], allow_unused=True)
        assert not all(g.isfinite().all() for g in gradients if g is not None)
        return
    for mine, theirs in zip(ours, eager, strict=True):
        assert torch.equal(mine.isfinite(), theirs.isfinite())
        mine, theirs = mine.nan_to_num(0, 0, 0), theirs.nan_to_num(0, 0, 0)
        assert (mine - theirs).norm() <= 0.06 * theirs.norm() + 1e-6  # 20 v magnifies v's rounding 20 times


def test_a_large_gradient_that_the_host_selected_is_no_mask() -> None:
    """Of a softmax's smallest share, -2e6: below what stands for "left out" in scores."""
    torch.manual_seed(29)
    x = torch.randn(2, 29, 6, requires_grad=True)

    def shares(x: Tensor) -> Tensor:
        return (x.softmax(1) ** 0.5).sum(1) + (x.softmax(1) ** -1.5).mean(1)

    (right,) = torch.autograd.grad(shares(x).sum(), x)
    torch._dynamo.reset()
    torch._dynamo.mark_dynamic(x, 1)
    (ours,) = torch.autograd.grad(torch.compile(shares, backend=backend.ane)(x).sum(), x)
    assert distance(ours, right) < 0.002
