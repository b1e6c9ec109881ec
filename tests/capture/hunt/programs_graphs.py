"""What graphs do besides arithmetic: state, views, aliases, hooks, transforms, random numbers, edges of fp16, dtypes, attention."""

import math

import torch
import torch.nn.functional as F
from hunting import module, of, program
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

X = (6, 20)
WEIGHT = torch.randn(20, 20, generator=torch.Generator().manual_seed(0)) / 20**0.5


def leaf(*shape: int, scale: float = 1.0, shift: float = 0.0, grad: bool = True, seed: int = 1):
    """A maker of a tensor of another scale."""
    return lambda: (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + shift).requires_grad_(grad)


# ---- state

class Averaged(nn.Module):
    def __init__(self, how: str):
        super().__init__()
        self.how, self.map = how, nn.Linear(20, 20)
        self.register_buffer("mean", torch.zeros(20))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.map(x)
        with torch.no_grad():
            if self.how == "mul_ add_":
                self.mean.mul_(0.999).add_(y.mean(0), alpha=0.001)
            elif self.how == "lerp_":
                self.mean.lerp_(y.mean(0), 0.001)
            elif self.how == "copy_":
                self.mean.copy_(0.999 * self.mean + 0.001 * y.mean(0))
            elif self.how == "assigned":
                self.mean = 0.999 * self.mean + 0.001 * y.mean(0)
            elif self.how == "a slice":
                self.mean[3:9] += 1e-4 * y.mean(0)[3:9]
            self.steps += 1
            self.total += 1e-5
        return y - self.mean


for how in ("mul_ add_", "lerp_", "copy_", "assigned", "a slice"):
    module(f"state: an average kept by {how}", lambda how=how: Averaged(how), X, steps=20)


def _whole_step(make):
    def build():
        model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3))
        optimizer = make(model.parameters())

        class Step(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                optimizer.zero_grad()
                loss = self.model(x).square().mean()
                loss.backward()
                optimizer.step()
                return loss.detach()

        return Step(), (torch.randn(6, 20, generator=torch.Generator().manual_seed(3)),)

    return build


for name, make in {
    "SGD": lambda p: torch.optim.SGD(p, 1e-3), "SGD momentum": lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9, nesterov=True), "Adam": lambda p: torch.optim.Adam(p, 1e-4), "AdamW amsgrad": lambda p: torch.optim.AdamW(p, 1e-4, amsgrad=True),
    "AdamW foreach off": lambda p: torch.optim.AdamW(p, 1e-4, foreach=False), "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-4, momentum=0.5, centered=True), "Adagrad": lambda p: torch.optim.Adagrad(p, 1e-4), "NAdam": lambda p: torch.optim.NAdam(p, 1e-4), "Adamax": lambda p: torch.optim.Adamax(p, 1e-4),
}.items():  # fmt: skip
    program(f"state: a whole step with {name}", _whole_step(make), backward=False, steps=4)

of("state: an input written by add_", lambda x, state: (state.add_(x.detach().mean(0) * 1e-4), x @ WEIGHT)[1], X, leaf(20, grad=False), steps=5)
of("state: an input written in parts", lambda x, state: (state[2:5].copy_(x.detach()[0, :3]), x.sin())[1], X, leaf(20, grad=False))
of("state: a counter that counts", lambda x, n: (n.add_(1), x * n)[1], X, torch.zeros((), dtype=torch.long), steps=3)
of("state: an output that is a written input", lambda s, x: s.mul_(0.5).add_(x), leaf(20, grad=False), leaf(20, grad=False), backward=False)
of("state: zero_ and index_add_", lambda s, x: s.zero_().index_add_(0, torch.tensor([0, 1, 0]), x), leaf(3, 5, grad=False), leaf(3, 5, grad=False), backward=False)
of("state: fill through a view", lambda s, x: (s.view(-1)[::2].mul_(1.001), x @ WEIGHT)[1], leaf(4, 6, grad=False), X)

# ---- views, strides and shared storage

VIEWS = {
    "a view of the input": lambda x: x.view(4, 30), "a transposed input": lambda x: x.T, "the input itself": lambda x: x, "two views of one result": lambda x: (lambda y: (y[0], y[1:]))(x * 2),
    "a result and its transpose": lambda x: (lambda y: (y, y.T))(x.exp()), "the same result twice": lambda x: (lambda y: (y, y))(x.exp()), "a permuted product": lambda x: (x @ WEIGHT).T.exp(), "permuted element-wise": lambda x: x.T * 2, "expanded": lambda x: x.sum(0).expand(3, 20),
    "as_strided": lambda x: (x * 2).as_strided((3, 4), (20, 2), 1), "diagonal of a result": lambda x: (x @ WEIGHT)[:6, :6].diagonal(), "a slice with a step": lambda x: (x * 2)[::2, 1::3], "contiguous of a transpose": lambda x: (x * 2).T.contiguous(), "flatten of a permuted": lambda x: (x.T * 2).flatten(),
    "split results": lambda x: (x @ WEIGHT).split(5, -1), "chunked and one changed": lambda x: (lambda a, b: (a, b.mul(2)))(*(x * 2).chunk(2, -1)), "unbind": lambda x: (x * 2).unbind(0), "detached": lambda x: (x * 2).detach(), "a view of a view": lambda x: (x * 2).view(12, 10)[2:].T,
    "real of complex": lambda x: torch.complex(x, x * 2).real, "select of permute": lambda x: (x.view(6, 4, 5).permute(2, 0, 1) * 3).select(0, 2), "empty_like of a permuted": lambda x: torch.empty_like(x.T).copy_(x.T * 2), "an input and a result": lambda x: (x, x.exp()), "squeeze of keepdim": lambda x: x.sum(0, keepdim=True).squeeze(0),
}  # fmt: skip
for name, view in VIEWS.items():
    of(f"view: {name}", view, X)
    of(f"view, no gradients: {name}", view, leaf(*X, grad=False), backward=False)
of("view: channels last through a conv", lambda x: F.conv2d(x, torch.ones(4, 4, 1, 1)).relu(), lambda: torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last).requires_grad_())
of("view: a strided input", lambda x: x * 2 + 1, lambda: torch.randn(20, 12)[::2, ::3])
of("view: an expanded input", lambda x: x.exp(), lambda: torch.randn(1, 6).expand(5, 6))
of("view: two inputs of one storage", lambda a, b: (a.mul_(2), a + b)[1], *(lambda base: (base[:6], base[4:10]))(torch.randn(10)), backward=False)

# ---- backwards of one's own


def function(back):
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * 1

        @staticmethod
        def backward(ctx, g):
            return back(g, *ctx.saved_tensors)

    return Own.apply


BACKWARDS = {
    "clamp": lambda g, x: g.clamp(-0.01, 0.01), "sign": lambda g, x: g.sign() * 0.1, "squared": lambda g, x: g * g.abs(), "product with itself": lambda g, x: g * g, "normalised": lambda g, x: g / (g.norm() + 1e-8), "norm clipped": lambda g, x: g * (0.1 / (g.norm() + 1e-6)).clamp(max=1),
    "plus the input": lambda g, x: g + 0.01 * x, "plus a number": lambda g, x: g + 1e-3, "reversed": lambda g, x: -g, "masked": lambda g, x: g * (x > 0), "where small": lambda g, x: torch.where(g.abs() < 0.01, torch.zeros_like(g), g), "tanh": lambda g, x: torch.tanh(g), "softmax": lambda g, x: g.softmax(-1),
    "relu": lambda g, x: g.relu(), "max of g": lambda g, x: g / g.abs().max(), "sqrt": lambda g, x: g.abs().sqrt() * g.sign(), "exponential": lambda g, x: (g.exp() - 1), "centred": lambda g, x: g - g.mean(0), "standardised": lambda g, x: (g - g.mean()) / (g.std() + 1e-6), "sorted": lambda g, x: g.sort(-1).values,
    "rounded": lambda g, x: (g * 1000).round() / 1000, "product of two": lambda g, x: g * (g * x).sum(), "clamped by x": lambda g, x: torch.minimum(g, 0.01 * x.abs()), "outer": lambda g, x: g @ (g.T @ x), "pow": lambda g, x: g.abs().pow(1.5), "cos": lambda g, x: torch.cos(g) - 1, "comparison": lambda g, x: (g > 0.001).float(),
}  # fmt: skip
for name, back in BACKWARDS.items():
    of(f"backward: {name}", lambda x, f=function(back): f((x @ WEIGHT).tanh()) @ WEIGHT, X)
    of(f"hook: {name}", lambda x, back=back: _hooked(x, back), X)


def _hooked(x: torch.Tensor, back) -> torch.Tensor:
    h = (x @ WEIGHT).tanh()
    h.register_hook(lambda g: back(g, h.detach()))
    return h @ WEIGHT


class Auxiliary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, loss):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        return g, torch.ones(())


of("backward: an auxiliary loss", lambda x: Auxiliary.apply(x @ WEIGHT, 0.1 * (x @ WEIGHT).square().mean()) @ WEIGHT, X)
of("backward: checkpointed", lambda x: checkpoint(lambda y: (y @ WEIGHT).tanh() @ WEIGHT, x, use_reentrant=False), X)
of("backward: a frozen branch", lambda x: (x @ WEIGHT).detach() * (x @ WEIGHT), X)
of("backward: an unused input", lambda x, y: x @ WEIGHT, X, X)
of("backward: no_grad inside", lambda x: (x @ WEIGHT) * _without(lambda: (x @ WEIGHT).sigmoid()), X)
of("backward: two outputs, one unused by the loss", lambda x: ((x @ WEIGHT).tanh(), (x @ WEIGHT).detach()), X)


def _without(f):
    with torch.no_grad():
        return f()


# ---- function transforms

small = {"a": torch.randn(20, 12, generator=torch.Generator().manual_seed(2)) * 0.2, "b": torch.randn(12, 4, generator=torch.Generator().manual_seed(3)) * 0.2}


def net(p: dict, x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x @ p["a"]) @ p["b"]


def _functional(x: torch.Tensor) -> torch.Tensor:
    return net(small, x).square().mean()


for scale in (1.0, 1e-3, 1e-6):
    of(f"func: grad of {scale:g} times a loss", lambda x, s=scale: grad(lambda p: s * net(p, x).square().mean())(small), leaf(*X, grad=False), backward=False)
of("func: grad of an input", lambda x: grad(_functional)(x), leaf(*X, grad=False), backward=False)
of("func: per sample gradients", lambda x: vmap(grad(lambda p, s: net(p, s).square().mean()), (None, 0))(small, x), leaf(*X, grad=False), backward=False)
of("func: jacrev", lambda x: jacrev(lambda s: net(small, s))(x[0]), leaf(*X, grad=False), backward=False)
of("func: vjp", lambda x: vjp(lambda s: net(small, s), x)[1](torch.ones(6, 4) * 1e-4), leaf(*X, grad=False), backward=False)
of("func: jvp", lambda x: jvp(lambda s: net(small, s), (x,), (x * 1e-3,)), leaf(*X, grad=False), backward=False)
of("func: hessian", lambda x: hessian(_functional)(x[0]), leaf(*X, grad=False), backward=False)
of("func: vmap", lambda x: vmap(lambda s: torch.outer(s, s).tanh().sum(0))(x), X)
of("func: autograd.grad inside", lambda x: torch.autograd.grad((net(small, y := x.detach().requires_grad_()) * 1e-5).sum(), y)[0], leaf(*X, grad=False), backward=False)
program("func: grad around a module", lambda: ((lambda m: lambda x: grad(lambda p: functional_call(m, p, (x,)).square().mean())({k: v.detach() for k, v in m.named_parameters()}))(nn.Linear(20, 5)), (torch.randn(6, 20),)), backward=False)

# ---- random numbers

for name, draw in {
    "rand_like": lambda x: x * torch.rand_like(x), "randn": lambda x: x + torch.randn(6, 20), "bernoulli": lambda x: x * torch.bernoulli(x.sigmoid()), "dropout twice": lambda x: F.dropout(F.dropout(x, 0.2) @ WEIGHT, 0.3), "multinomial": lambda x: x[torch.multinomial(torch.ones(6), 3)], "randperm": lambda x: x[torch.randperm(6)],
    "gumbel": lambda x: F.gumbel_softmax(x, tau=0.7), "gumbel hard": lambda x: F.gumbel_softmax(x, hard=True), "normal_": lambda x: x + torch.empty(20).normal_(), "exponential_": lambda x: x * torch.empty(20).exponential_(), "uniform_": lambda x: x * torch.empty_like(x).uniform_(-1, 1), "feature dropout": lambda x: F.feature_alpha_dropout(x, 0.3, True),
    "randint": lambda x: x * torch.randint(0, 3, (6, 20)), "normal distribution": lambda x: torch.distributions.Normal(x, x.abs() + 0.1).rsample(), "beta rsample": lambda x: torch.distributions.Beta(x.abs() + 1, x.abs() + 2).rsample(), "categorical": lambda x: torch.distributions.Categorical(logits=x).log_prob(torch.arange(6)),
}.items():  # fmt: skip
    of(f"random: {name}", lambda x, draw=draw: draw(x @ WEIGHT), X)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(20, 20) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x)) * (F.dropout(x, 0.3) + torch.rand_like(x)) + torch.empty_like(x).uniform_()
        return x


module("random: equal layers that draw three kinds", Noisy, X)

# ---- distributions

D = torch.distributions
for name, log_prob in {
    "Normal": lambda x: D.Normal(x, x.exp()).log_prob(x.flip(0)), "Beta": lambda x: D.Beta(x.exp(), x.flip(0).exp()).log_prob(x.sigmoid().clamp(0.01, 0.99)), "Gamma": lambda x: D.Gamma(x.exp(), x.flip(0).exp()).log_prob(x.exp()), "Dirichlet": lambda x: D.Dirichlet(x.exp()).log_prob(x.flip(0).softmax(-1)), "Bernoulli": lambda x: D.Bernoulli(logits=x).log_prob((x > 0).float()),
    "Bernoulli entropy": lambda x: D.Bernoulli(logits=x).entropy(), "Categorical entropy": lambda x: D.Categorical(logits=x).entropy(), "StudentT": lambda x: D.StudentT(x.exp() + 1).log_prob(x), "Laplace": lambda x: D.Laplace(x, x.exp()).log_prob(x.flip(0)), "LogNormal": lambda x: D.LogNormal(x, x.exp()).log_prob(x.flip(0).exp()), "Poisson": lambda x: D.Poisson(x.exp()).log_prob(x.abs().round()),
    "MultivariateNormal": lambda x: D.MultivariateNormal(x[:, :4], scale_tril=torch.eye(4) + 0.1 * torch.ones(4, 4).tril(-1)).log_prob(x[:, 4:8]), "kl of normals": lambda x: D.kl_divergence(D.Normal(x, x.exp()), D.Normal(0.0, 1.0)), "kl of categoricals": lambda x: D.kl_divergence(D.Categorical(logits=x), D.Categorical(logits=x.flip(0))), "VonMises": lambda x: D.VonMises(x, x.exp()).log_prob(x.flip(0)),
}.items():  # fmt: skip
    of(f"distribution: {name}", lambda x, f=log_prob: f(0.5 * torch.tanh(x @ WEIGHT)), X)

# ---- linear algebra

for name, op in {
    "inv": lambda a: torch.linalg.inv(a), "solve": lambda a: torch.linalg.solve(a, a[:, :2]), "cholesky": lambda a: torch.linalg.cholesky(a @ a.T + torch.eye(5)), "det": lambda a: torch.linalg.det(a), "slogdet": lambda a: torch.linalg.slogdet(a), "eigvalsh": lambda a: torch.linalg.eigvalsh(a + a.T), "svdvals": lambda a: torch.linalg.svdvals(a),
    "qr": lambda a: torch.linalg.qr(a)[1].abs(), "matrix_exp": lambda a: torch.linalg.matrix_exp(0.1 * a), "matrix_power": lambda a: torch.linalg.matrix_power(a, 3), "pinv": lambda a: torch.linalg.pinv(a), "lstsq": lambda a: torch.linalg.lstsq(a, a[:, :1]).solution, "triangular": lambda a: torch.linalg.solve_triangular(a.tril(), a[:, :2], upper=False), "norm 2": lambda a: torch.linalg.matrix_norm(a, 2),
    "cayley": lambda a: torch.linalg.solve(torch.eye(5) + a - a.T, torch.eye(5) - a + a.T), "logdet": lambda a: torch.logdet(a @ a.T + torch.eye(5)),
}.items():  # fmt: skip
    of(f"linalg: {name}", lambda x, op=op: op(x @ WEIGHT[:5, :5] + 3 * torch.eye(5)), (5, 5))

# ---- the edges of fp16

EDGES = {
    "exp of 15": (lambda x: (x @ WEIGHT + 15).exp().mean(-1).log(), leaf(*X)), "sin of 1000 t": (lambda x: torch.sin(1000 * x) @ WEIGHT, leaf(*X)), "columns of 1e6": (lambda x: F.layer_norm(x, (20,)) @ WEIGHT, leaf(*X, scale=1e6)), "columns around 1e4": (lambda x: F.batch_norm(x, None, None, training=True) @ WEIGHT, leaf(*X, shift=1e4)),
    "square of 500": (lambda x: F.mse_loss(x @ WEIGHT, 500 * torch.ones(6, 20)), leaf(*X)), "sum of squares of 100": (lambda x: (x @ WEIGHT).square().sum(), leaf(*X, scale=100.0)), "normalize of 1e-4": (lambda x: F.normalize(x @ WEIGHT), leaf(*X, scale=1e-4)), "normalize of zeros": (lambda x: F.normalize(x * 0) @ WEIGHT, leaf(*X)),
    "epsilon 1e-12": (lambda x: (x @ WEIGHT) / ((x @ WEIGHT).norm(dim=-1, keepdim=True) + 1e-12), leaf(*X, scale=1e-3)), "log of softmax + 1e-9": (lambda x: ((x @ WEIGHT * 20).softmax(-1) + 1e-9).log(), leaf(*X)), "log of sigmoid + 1e-8": (lambda x: ((x @ WEIGHT * 20).sigmoid() + 1e-8).log(), leaf(*X)), "exp / 0.07": (lambda x: (F.normalize(x @ WEIGHT) @ F.normalize(x).T / 0.07).exp().sum(-1).log(), leaf(*X)),
    "differences of cumulative sums": (lambda x: ((c := x.abs().cumsum(-1))[:, :, None] - c[:, None, :]).neg().clamp(max=0).exp() @ x[:, :, None], leaf(4, 200)), "cumsum of 2000": (lambda x: x.abs().cumsum(-1) @ torch.ones(2000, 2), leaf(2, 2000)), "mean of 5000 of 100": (lambda x: x.mean() * WEIGHT, leaf(5000, shift=100.0)), "variance around 100": (lambda x: (x @ WEIGHT + 100).var(-1), leaf(*X)),
    "E[x^2] - E[x]^2": (lambda x: (y := x @ WEIGHT + 10).square().mean(-1) - y.mean(-1).square(), leaf(*X)), "1 - cos": (lambda x: 1 - torch.cos(0.01 * x @ WEIGHT), leaf(*X)), "small minus small": (lambda x: (x @ WEIGHT + 1000) - 1000, leaf(*X)), "pow 6": (lambda x: (x @ WEIGHT * 4) ** 6, leaf(*X)), "prod of 20": (lambda x: (x.abs() + 1).prod(-1), leaf(*X, scale=3.0)),
    "1e-7 gradients": (lambda x: 1e-7 * (x @ WEIGHT).tanh(), leaf(*X)), "1e5 outputs": (lambda x: 1e5 * (x @ WEIGHT), leaf(*X)), "positions to 100000": (lambda x: torch.outer(torch.linspace(0, 1e5, 6), torch.ones(20)).sin() * x, leaf(*X)), "logsumexp of 1e4": (lambda x: (x @ WEIGHT * 1e4).logsumexp(-1), leaf(*X)), "softplus beta 50": (lambda x: F.softplus(x @ WEIGHT, beta=50), leaf(*X)),
    "temperature 1e-3": (lambda x: (x @ WEIGHT / 1e-3).softmax(-1), leaf(*X)), "log1p of small": (lambda x: torch.log1p(1e-5 * x @ WEIGHT) * 1e5, leaf(*X)), "expm1 of small": (lambda x: torch.expm1(1e-5 * x @ WEIGHT) * 1e5, leaf(*X)), "erfinv near 1": (lambda x: torch.erfinv(1 - 1e-4 * x.sigmoid()), leaf(*X)), "huber of 1e5": (lambda x: F.huber_loss(x * 1e5, torch.zeros(6, 20)), leaf(*X)),
    "gaussian nll, var 1e-6": (lambda x: F.gaussian_nll_loss(x @ WEIGHT * 1e-3, torch.zeros(6, 20), torch.full((6, 20), 1e-6)), leaf(*X)), "cosine of 1e-5": (lambda x: F.cosine_similarity(x @ WEIGHT, x.flip(0), dim=-1), leaf(*X, scale=1e-5)), "polynomial features": (lambda x: torch.stack([x, x**2, x**3, x**4], -1).sum(-1) @ WEIGHT, leaf(*X, scale=5.0)), "Fourier features": (lambda x: torch.cat([torch.sin(x @ (30 * WEIGHT)), torch.cos(x @ (30 * WEIGHT))], -1), leaf(*X)),
    "explicit float": (lambda x: ((x @ WEIGHT).float() * 300).square().mean(-1), leaf(*X)), "an inf in one row": (lambda x: x * 2 + 1, lambda: _with(math.inf)), "a NaN in one row": (lambda x: x.sum(-1), lambda: _with(math.nan)), "1e5 in one row": (lambda x: x * 0.5, lambda: _with(1e5)), "NaN replaced": (lambda x: x.nan_to_num(0.0) @ WEIGHT, lambda: _with(math.nan)),
    "NaN masked": (lambda x: x.masked_fill(x.isnan(), 0.0) @ WEIGHT, lambda: _with(math.nan)), "-inf that leaves": (lambda x: (x @ WEIGHT).masked_fill(torch.ones(6, 20).tril() == 0, -math.inf), leaf(*X)), "isinf of a mask": (lambda x: (s := (x @ WEIGHT).masked_fill(torch.ones(6, 20).tril() == 0, -math.inf)).masked_fill(s.isinf(), 1.0), leaf(*X)), "1e-30": (lambda x: x * 1e30, leaf(*X, scale=1e-30)),
    "whole numbers beyond 2048": (lambda x: torch.arange(6)[:, None] * 1001.0 + x, leaf(*X)), "a large input difference": (lambda x: (x - x.roll(1, 0)) @ WEIGHT, leaf(*X, shift=10000.0)),
}  # fmt: skip
for name, (f, x) in EDGES.items():
    of(f"edge: {name}", f, x)


def _with(value: float) -> torch.Tensor:
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    x[1, 3] = value
    return x


# ---- dtypes

for name, (f, x) in {
    "float64": (lambda x: (x @ WEIGHT.double()).tanh(), lambda: torch.randn(6, 20, dtype=torch.float64).requires_grad_()), "bf16": (lambda x: (x @ WEIGHT.bfloat16()).tanh(), lambda: torch.randn(6, 20, dtype=torch.bfloat16).requires_grad_()), "fp16": (lambda x: (x @ WEIGHT.half()).tanh(), lambda: torch.randn(6, 20, dtype=torch.float16).requires_grad_()),
    "int times float": (lambda x: torch.arange(20) * (x @ WEIGHT), leaf(*X)), "bool": (lambda x: (x > 0) & (x < 1), leaf(*X)), "long output": (lambda x: (x * 100).long(), leaf(*X)), "complex": (lambda x: (torch.complex(x, x.flip(0)) * 2j).abs(), leaf(*X)), "int8 product": (lambda x: ((x.detach() * 50).to(torch.int8).int().sum(-1)).float() * 1e-3 + x.sum(-1), leaf(*X)),
    "to bf16 and back": (lambda x: (x @ WEIGHT).bfloat16().float() @ WEIGHT, leaf(*X)), "uint8 image": (lambda x: x.float() / 255 @ WEIGHT, lambda: torch.arange(120, dtype=torch.uint8).reshape(6, 20)), "scalars": (lambda x: (x @ WEIGHT).sum() * torch.tensor(2.0), leaf(*X)), "an empty batch": (lambda x: x @ WEIGHT, lambda: torch.randn(0, 20).requires_grad_()), "item in the model": (lambda x: x * x.shape[0], leaf(*X)),
}.items():  # fmt: skip
    of(f"dtype: {name}", f, x)

# ---- attention

Q, KV = (2, 4, 6, 8), (2, 4, 6, 8)
for name, kwargs in {"plain": {}, "causal": {"is_causal": True}, "scale": {"scale": 0.5}, "bool mask": {"attn_mask": torch.ones(6, 6, dtype=torch.bool).tril()}, "float mask": {"attn_mask": torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1) > 0, -math.inf)}, "dropout": {"dropout_p": 0.2}}.items():
    of(f"attention: {name}", lambda q, k, v, kw=kwargs: F.scaled_dot_product_attention(q, k, v, **kw), Q, KV, KV)
    for kind in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        if kind == SDPBackend.MATH or name in ("plain", "causal", "scale"):
            of(f"attention: {name}, {kind.name.lower()}", lambda q, k, v, kw=kwargs, kind=kind: _chosen(kind, q, k, v, kw), Q, KV, KV)
of("attention: grouped", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), (2, 4, 6, 8), (2, 2, 6, 8), (2, 2, 6, 8))
of("attention: cross lengths", lambda q, k, v: F.scaled_dot_product_attention(q, k, v), (2, 4, 3, 8), KV, KV)
MULTIPLIED = torch.ones(6, 6).tril() * (torch.arange(6) > 1)
for name, masked in {
    "(1 - m) * -1e9": lambda a: (a + (1 - MULTIPLIED) * -1e9).softmax(-1), "where finfo min": lambda a: torch.where(MULTIPLIED > 0, a, torch.finfo(torch.float32).min).softmax(-1), "-1e4 added": lambda a: (a + (1 - MULTIPLIED) * -1e4).softmax(-1), "multiplied after": lambda a: a.softmax(-1) * MULTIPLIED, "renormalised": lambda a: (lambda p: p / (p.sum(-1, keepdim=True) + 1e-9))(a.softmax(-1) * MULTIPLIED),
    "log_softmax masked": lambda a: (a + (1 - MULTIPLIED) * -1e9).log_softmax(-1).masked_fill(MULTIPLIED == 0, 0.0), "-inf then nan_to_num": lambda a: a.masked_fill(MULTIPLIED == 0, -math.inf).softmax(-1).nan_to_num(0.0), "sigmoid attention": lambda a: (a - (1 - MULTIPLIED) * 1e9).sigmoid(), "relu squared": lambda a: a.relu().square() * MULTIPLIED, "softcap": lambda a: (30 * torch.tanh(a / 30)).masked_fill(MULTIPLIED == 0, -1e9).softmax(-1),
}.items():  # fmt: skip
    of(f"mask: {name}", lambda q, k, v, f=masked: f(q @ k.transpose(-1, -2) / 8**0.5) @ v, Q, KV, KV)


def _chosen(kind: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kwargs: dict) -> torch.Tensor:
    with sdpa_kernel(kind):
        return F.scaled_dot_product_attention(q, k, v, **kwargs)


of("attention: linear", lambda q, k, v: (lambda a, b: a @ (b.transpose(-1, -2) @ v) / (a @ b.sum(-2)[..., None] + 1e-6))(F.elu(q) + 1, F.elu(k) + 1), Q, KV, KV)
of("attention: alibi", lambda q, k, v: (q @ k.transpose(-1, -2) - (torch.arange(6)[:, None] - torch.arange(6)).abs()).softmax(-1) @ v, Q, KV, KV)
of("attention: retention", lambda q, k, v: (q @ k.transpose(-1, -2) * 0.9 ** (torch.arange(6.0)[:, None] - torch.arange(6.0)).clamp(min=0).tril()) @ v, Q, KV, KV)
