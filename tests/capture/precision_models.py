"""Small models in which fp16 is not enough somewhere, as people write them: name -> a function that gives (module, inputs)."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]] = {}
randn = torch.randn


class Model(nn.Module):
    """A function of the module itself and its inputs, with the parts that it reads."""

    def __init__(self, function: Callable[..., torch.Tensor], **parts: Any):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(part))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(self, *inputs)


def model(make: Callable[[], Any]) -> Callable[[], Any]:
    MODELS[make.__name__.replace("_", " ")] = make
    return make


def between(name: str, function: Callable[[torch.Tensor], torch.Tensor], *shape: int, gain: float = 1.0, shift: float = 0.0) -> None:
    """The function of a product's result, (.., 16), before another product."""

    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        first = nn.Linear(8, 16)
        with torch.no_grad():
            first.weight.mul_(gain)
            first.bias.add_(shift)
            size = function(first(randn(*shape, 8))).shape[-1]
        return Model(lambda m, x: m.out(function(m.first(x))), first=first, out=nn.Linear(size, 4)), (randn(*shape, 8),)

    MODELS[name] = make


# Angles


def _waves(angle: torch.Tensor) -> torch.Tensor:
    return torch.cat([angle.sin(), angle.cos()], -1)


FREQUENCIES = torch.exp(-math.log(10000) * torch.arange(8) / 8)


@model
def diffusion_step():
    embed = lambda m, x, t: m.out(F.silu(m.time(_waves(t[:, None] * FREQUENCIES))) + m.first(x))
    return Model(embed, time=nn.Linear(16, 16), first=nn.Linear(8, 16), out=nn.Linear(16, 4)), (randn(16, 8), torch.rand(16) * 999)


@model
def noise_level():
    def f(m, x, sigma):
        level = _waves((sigma.log() * 250)[:, None] * FREQUENCIES)
        return m.out(F.silu(m.time(level)) + m.first(x / (sigma[:, None] ** 2 + 0.25).sqrt()))

    return Model(f, time=nn.Linear(16, 16), first=nn.Linear(8, 16), out=nn.Linear(16, 4)), (randn(16, 8), (randn(16) * 1.5).exp())


@model
def positions_of_a_radiance_field():
    f = lambda m, x: m.out(F.relu(m.first(_waves(torch.cat([x * 2.0**k for k in range(10)], -1)))))
    return Model(f, first=nn.Linear(60, 16), out=nn.Linear(16, 3)), (torch.rand(32, 3),)


@model
def fourier_features():
    table = randn(3, 16) * 3
    f = lambda m, x: m.out(F.relu(m.first(_waves(2 * math.pi * (x[:, :, None] * table).sum(1)))))
    return Model(f, first=nn.Linear(32, 16), out=nn.Linear(16, 3)), (torch.rand(32, 3),)


@model
def rotation_at_far_positions():
    inverse = 1.0 / 10000 ** (torch.arange(0, 8, 2) / 8)

    def f(m, x, positions):
        q, k, v = m.qkv(x).chunk(3, -1)
        angle = (positions[:, :, None] * inverse).repeat(1, 1, 2)
        turned = [y * angle.cos() + torch.cat([-y[..., 4:], y[..., :4]], -1) * angle.sin() for y in (q, k)]
        return m.out(F.scaled_dot_product_attention(*turned, v))

    positions = torch.arange(16)[None] * 6000.0 + torch.tensor([[3.0], [9.0]])
    return Model(f, qkv=nn.Linear(8, 24), out=nn.Linear(8, 4)), (randn(2, 16, 8), positions)


@model
def learned_waves_of_time():
    f = lambda m, x, t: m.out(torch.cat([x, torch.sin(t[:, None] * m.w + m.b)], -1))
    return Model(f, w=randn(8), b=randn(8), out=nn.Linear(16, 4)), (randn(16, 8), torch.rand(16) * 5000)


between("sine layers", lambda h: torch.sin(30 * h), 32, gain=0.3)

# Running sums and decays


def _segments(h: torch.Tensor) -> torch.Tensor:
    total = -F.softplus(h[..., 0]).cumsum(-1)
    later = ~torch.ones(h.shape[1], h.shape[1], dtype=torch.bool).tril()
    return torch.exp((total[:, :, None] - total[:, None, :]).masked_fill(later, -torch.inf)) @ h


def _gated(h: torch.Tensor) -> torch.Tensor:
    total = (F.logsigmoid(h) / 16).cumsum(1)
    return ((h * total.exp()) @ (h * (-total).exp()).transpose(1, 2)).tril() @ h


between("decays between positions", _segments, 2, 128)
between("gated linear attention", _gated, 2, 64)
between("decays by running products", lambda h: (c := torch.sigmoid(h + 3).cumprod(1)) * (h / (c + 1e-4)).cumsum(1), 2, 48)
between("running log-sum-exp", lambda h: (h.logcumsumexp(1) - h).exp().clamp(max=50), 2, 16)
between("running mean", lambda h: h.cumsum(1) / torch.arange(1, h.shape[1] + 1)[None, :, None], 2, 64)

# Losses inside the model


def loss(name: str, function: Callable[..., torch.Tensor], *others: Callable[[], torch.Tensor], width: int = 8, gain: float = 1.0) -> None:
    """Of a product's result (32, width) and other inputs."""

    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        first = nn.Linear(8, width)
        with torch.no_grad():
            first.weight.mul_(gain)
        return Model(lambda m, x, *rest: function(m.first(x), *rest), first=first), (randn(32, 8), *(other() for other in others))

    MODELS[name] = make


def _picked(logs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return -logs.gather(1, y[:, None]).mean()


def _focal(h: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    p = torch.where(y > 0, h.sigmoid(), 1 - h.sigmoid())
    return (-((1 - p) ** 2) * torch.log(p + 1e-9)).mean()


def _mixture(h: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    weight, mean, scale = h.chunk(3, -1)
    scale = scale.exp() + 1e-6
    density = torch.exp(-0.5 * ((y - mean) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
    return -torch.log((weight.softmax(-1) * density).sum(-1) + 1e-12).mean()


def _similar(h: torch.Tensor) -> torch.Tensor:
    z = F.normalize(h, dim=1)
    e = torch.exp(z @ z.T / 0.05) * (1 - torch.eye(len(z)))
    return -(e.roll(16, 1).diagonal() / e.sum(1)).log().mean()


def _kl(h: torch.Tensor) -> torch.Tensor:
    mean, log_variance = h.chunk(2, -1)
    return -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum(1).mean()


def _likelihood(h: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    mean, log_scale = h.chunk(2, -1)
    return (0.5 * ((y - mean) / torch.exp(log_scale)) ** 2 + log_scale).mean()


def _labels(classes: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randint(0, classes, (32,))


loss("squared errors of 400", F.mse_loss, lambda: randn(32, 8) * 400)
loss("squared errors, each", lambda h, y: F.mse_loss(h, y, reduction="none"), lambda: randn(32, 8) * 400)
loss("Huber of large errors", lambda h, y: F.huber_loss(h, y, delta=50.0), lambda: randn(32, 8) * 3e4)
loss("smooth L1, summed", lambda h, y: F.smooth_l1_loss(h, y, reduction="sum"), lambda: randn(32, 8) * 3e3)
loss("relative errors", lambda h, y: ((h - y).abs() / (y.abs() + 1e-8)).mean(), lambda: randn(32, 8))
loss("squared errors of logarithms", lambda h, y: ((F.softplus(h).log1p() - y.log1p()) ** 2).mean(), lambda: torch.rand(32, 8) * 1e5)
loss("log of softmax and an epsilon", lambda h, y: _picked(torch.log(h.softmax(-1) + 1e-9), y), _labels(8), gain=8)
loss("focal", _focal, lambda: torch.randint(0, 2, (32, 8)), gain=12)
loss("focal of cross-entropy", lambda h, y: ((1 - torch.exp(-(c := F.cross_entropy(h, y, reduction="none")))) ** 2.5 * c).mean(), _labels(8), gain=6)
loss("divergence from a normal", _kl, width=32, gain=12)
loss("divergence of two softmaxes", lambda h: F.kl_div(h[:, :4].log_softmax(-1), (h[:, 4:] * 5).softmax(-1), reduction="batchmean"))
loss("normal likelihood", lambda h, y: F.gaussian_nll_loss(h[:, :4], y, h[:, 4:].exp()), lambda: randn(32, 4) * 300, gain=10)
loss("normal likelihood by hand", _likelihood, lambda: randn(32, 4) * 20, gain=4)
loss("mixture of normals", _mixture, lambda: randn(32, 1) * 4, width=15)
loss("contrastive by exponentials", _similar)
loss("log-determinant", lambda h: torch.logdet(h.T @ h / len(h) + 0.1 * torch.eye(h.shape[1])))
loss("ratio of policies", lambda h, y, old: (h.log_softmax(-1).gather(1, y[:, None])[:, 0] - old).exp().clamp(0.8, 1.2).mean(), _labels(8), lambda: -torch.rand(32))

# Numbers of the caller's own


def raw(name: str, function: Callable[[torch.Tensor], torch.Tensor], make_input: Callable[[], torch.Tensor]) -> None:
    """The function of an input, before the first product."""

    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        x = make_input()
        size = function(x).shape[-1]
        f = lambda m, x: m.out(F.relu(m.first(function(x))))
        return Model(f, first=nn.Linear(size, 16), out=nn.Linear(16, 2)), (x,)

    MODELS[name] = make


def _columns() -> torch.Tensor:
    return torch.stack([torch.rand(64) * 70 + 18, torch.rand(64) * 150000 + 20000, torch.randint(1950, 2024, (64,)).float()], 1)


raw("columns by constants", lambda x: (x - torch.tensor([50.0, 95000, 1987])) / torch.tensor([20.0, 43000, 21]), _columns)
raw("columns by their own moments", lambda x: (x - x.mean(0)) / (x.std(0) + 1e-8), _columns)
raw("columns between their ends", lambda x: (x - x.amin(0)) / (x.amax(0) - x.amin(0) + 1e-9), _columns)
raw("columns as logarithms", lambda x: torch.sign(x) * torch.log1p(x.abs()), lambda: randn(64, 6) * 3e6)
raw("variance as a difference of squares", lambda x: (x - x.mean(0)) / ((x**2).mean(0) - x.mean(0) ** 2 + 1e-5).sqrt(), lambda: randn(64, 4) + 30)
raw("a row's norm", lambda x: F.layer_norm(x, (6,)), lambda: randn(64, 6) * 3e4 + 2e5)
raw("cosines of small vectors", lambda x: F.cosine_similarity(x[:, :8], x[:, 8:], dim=-1)[:, None], lambda: randn(64, 16) * 1e-6)
raw("powers up to the fourth", lambda x: torch.cat([x, x**2 / 40, x**3 / 1600, x**4 / 64000], -1), lambda: torch.rand(64, 4) * 40)
raw("a mean of large numbers", lambda x: (x.mean(1) - 50000) / 100, lambda: randn(64, 100, 4) * 100 + 5e4)

# Norms, powers and functions between products

between("a norm with 1e-8", lambda h: h / (h.pow(2).sum(-1, keepdim=True).sqrt() + 1e-8), 16, gain=1e-5)
between("a norm with 1e-12", lambda h: h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-12), 16, gain=1e-3)
between("a deviation with 1e-10", lambda h: (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 1e-10), 16)
between("unit vectors", lambda h: F.normalize(h, dim=-1), 16, gain=1e-4)
between("generalised mean", lambda h: h.clamp(min=1e-6).pow(3).mean(1).pow(1 / 3), 4, 12)
between("a broken power", lambda h: (h.abs() + 1e-3) ** 0.45, 16)
between("log1p and expm1 near zero", lambda h: torch.log1p(h.abs() * 1e-3) * 1e3 + torch.expm1(h * 1e-3) * 1e3, 16)
between("the logarithm of a softplus", lambda h: F.softplus(h * 4 - 8).log(), 16)
between("inverse of an error function", lambda h: torch.erfinv(torch.tanh(h) * 0.999), 16)
between("logits of a sigmoid", lambda h: torch.logit(torch.sigmoid(h * 3), eps=1e-6), 16)
between("log-sum-exp of large numbers", lambda h: (h * 1000).logsumexp(-1, keepdim=True) / 1000 - h, 16)
between("a kernel of distances", lambda h: torch.exp(-((h[:, None] - h[None]) ** 2).sum(-1) / 8), 16)
between("what the author casts", lambda h: ((h.float() - 1) * 1000 / (h.float().abs().sum(-1, keepdim=True) * 1000 + 1)).to(h.dtype), 16, shift=60)
between("small negative exponentials", lambda h: F.elu(h * 1e-4) * 1e4, 16)
