"""Random numbers are eager's: the same ones, in the same order, however many layers draw them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from capture_helpers import distance
from torch import nn

from torchane.capture import backend

pytestmark = pytest.mark.filterwarnings("ignore::torchane.errors.TorchaneWarning")

NOISE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dropout, then rand_like": lambda x: F.dropout(x, 0.3) + torch.rand_like(x),
    "randn_like twice": lambda x: torch.randn_like(x) + torch.randn_like(x) * x,
    "uniform_": lambda x: torch.empty_like(x).uniform_(),
    "exponential_ of zeros": lambda x: torch.zeros_like(x).exponential_(),
    "normal_ in place": lambda x: torch.empty(x.shape).normal_(1.0, 0.5),
    "bernoulli_": lambda x: torch.empty_like(x).bernoulli_(0.4),
    "bernoulli of a value": lambda x: torch.bernoulli(torch.sigmoid(x)),
    "of a transposed value": lambda x: torch.rand_like(x.mT).mT + F.dropout(x.mT, 0.2).mT,
    "rand, randint, randn": lambda x: torch.rand(4, 8) + torch.randint(0, 3, (4, 8)) + torch.randn(8),
    "gumbel": lambda x: F.gumbel_softmax(x, tau=0.7),
    "a distribution": lambda x: torch.distributions.Normal(x, 0.5).rsample() + F.dropout(x, 0.1),
    "a permutation": lambda x: x[:, torch.randperm(8)] + torch.rand_like(x),
    "noise that the value decides": lambda x: torch.normal(x, 0.1) + F.dropout(x, 0.3),
}
QUICK = ("dropout, then rand_like", "randn_like twice", "exponential_ of zeros")


class Layer(nn.Module):
    def __init__(self, noise: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.map, self.noise = nn.Linear(8, 8), noise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.map(x)) * self.noise(x)


class Stack(nn.Module):
    def __init__(self, noise: Callable[[torch.Tensor], torch.Tensor], count: int):
        super().__init__()
        self.layers = nn.ModuleList(Layer(noise) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in NOISE])
@pytest.mark.parametrize("wants_gradient", [True, pytest.param(False, marks=pytest.mark.long)], ids=["training", "inference"])
def test_equal_layers_draw_what_eager_draws(name: str, wants_gradient: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Stack(NOISE[name], 3), torch.randn(4, 8)
    results, after = [], []
    for call in (model, torch.compile(model, backend=backend.ane)):
        torch.manual_seed(7)
        with torch.set_grad_enabled(wants_gradient):
            results.append(call(x.clone().requires_grad_(wants_gradient)).detach())
        after.append(torch.rand(3))
    assert distance(results[1], results[0]) < 0.02
    assert torch.equal(*after)
