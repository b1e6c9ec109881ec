"""Attention without a softmax, as Performer has it: kernels, and division by their sums, whose inverse squared leaves fp16."""

import copy
import math

import pytest
import torch
from capture_helpers import compile_for_twin, distance
from torch import Tensor, nn


def kernel(x: Tensor, projection: Tensor, axes: tuple[int, ...]) -> Tensor:
    """exp(w x - |x|^2 / 2), its largest number 1, and 1e-4. Source: Choromanski et al. 2021, arXiv 2009.14794, lemma 1."""
    x = x * x.shape[-1] ** -0.25
    scores = torch.einsum("...id,jd->...ij", x, projection)
    size = x.square().sum(-1, keepdim=True) / 2
    return (torch.exp(scores - size - scores.amax(axes, keepdim=True).detach()) + 1e-4) / math.sqrt(len(projection))


class Performer(nn.Module):
    def __init__(self, size: float):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(64, 64, bias=False) for _ in range(4))
        self.norm = nn.LayerNorm(64)
        self.size = size
        self.register_buffer("projection", torch.randn(44, 16))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        y = self.norm(x) * self.size
        q, k, v = (part(y).view(batch, tokens, 4, 16).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = kernel(q, self.projection, (-1,)), kernel(k, self.projection, (-1, -2))
        inverse = 1.0 / torch.einsum("...nd,...d->...n", q, k.sum(-2))
        y = torch.einsum("...de,...nd,...n->...ne", torch.einsum("...nd,...ne->...de", k, v), q, inverse)
        return x + self.out(y.transpose(1, 2).reshape(batch, tokens, width))


@pytest.mark.filterwarnings("ignore::torchane.errors.TorchaneWarning")
@pytest.mark.parametrize("size", [0.5, 1.0])
def test_performers_gradients_are_eagers(size: float) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    ours = Performer(size)
    eager = copy.deepcopy(ours)
    x = torch.randn(2, 32, 64)
    for model in (compile_for_twin(ours), eager):
        model(x).square().mean().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), eager.parameters(), strict=True):
        assert distance(mine.grad, theirs.grad) < 0.02, name


def test_the_gradient_of_a_small_divisor_stays_in_range() -> None:
    """1 / d is 1,000 and its square no number of fp16: the incoming gradient meets one power after the other."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    given = [torch.rand(2, 32, 16) * 0.1, torch.rand(2, 16) * 0.002, torch.randn(2, 32, 16) * 0.01]

    def divided(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bnd,bn->bnd", v, 1.0 / torch.einsum("bnd,bd->bn", q, k))

    found = []
    for call in (torch.compile(divided, backend="ane", options={"device": "twin"}), divided):
        leaves = [x.clone().requires_grad_() for x in given]
        found.append(torch.autograd.grad(call(*leaves).square().mean(), leaves))
    for mine, theirs in zip(*found, strict=True):
        assert distance(mine, theirs) < 8 * 2**-11
