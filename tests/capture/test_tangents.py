"""Incoming gradients of very different size: each keeps its digits, whatever lies beside it."""

import pytest
import torch
from torch import Tensor, nn

from torchane.capture import backend
from torchane.errors import TorchaneWarning

#: Four roundings to fp16 of a chain of two products.
CLOSE = 4 * 2.0**-11


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 8), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.body(x))
        return self.first(h), self.second(h.detach())


class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(_, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_, gradient: Tensor) -> Tensor:
        return gradient.clamp(-0.1, 0.1)


def both(function, inputs, wanted, tangents) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients: the backend's, eager's."""
    torch._dynamo.reset()
    found = []
    for call in (torch.compile(function, backend=backend.ane, options={"device": "twin"}), function):
        outputs = call(*inputs)
        found.append(torch.autograd.grad(outputs, wanted, tangents))
    return found


def off(found: Tensor, right: Tensor) -> float:
    return ((found.double() - right).norm() / right.double().norm()).item()


@pytest.mark.parametrize("exponent", [-6, -9, -14, -25])
def test_outputs_whose_gradients_are_far_apart_keep_their_digits(exponent: int) -> None:
    model, x = Heads(), torch.randn(6, 24)
    tangents = [torch.randn(6, 8), torch.randn(6, 8) * 10.0**exponent]
    for found, right in zip(*both(model, [x], list(model.parameters()), tangents), strict=True):
        assert off(found, right) < CLOSE


def test_samples_keep_their_digits_in_the_gradient_of_an_input() -> None:
    model, x = Heads(), torch.randn(6, 24, requires_grad=True)
    tangent = torch.randn(6, 8) * torch.logspace(0, -12, 6)[:, None]
    (found,), (right,) = both(lambda x: model(x)[0], [x], [x], [tangent])
    assert all(off(mine, theirs) < CLOSE for mine, theirs in zip(found, right, strict=True))


@pytest.mark.filterwarnings("ignore:1 floating-point op runs in PyTorch")
def test_what_is_not_proportional_is_pytorchs_and_said() -> None:
    model, x = Heads(), torch.randn(6, 24)

    def clipped(x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = model(x)
        return Clipped.apply(first), second

    tangents = [torch.randn(6, 8), torch.randn(6, 8) * 1e-9]
    with pytest.warns(TorchaneWarning, match=r"differ by more than 2\^20 in size.*PyTorch computes the backward in float32"):
        pairs = both(clipped, [x], list(model.parameters()), tangents)
    for found, right in zip(*pairs, strict=True):
        assert off(found, right) < CLOSE


def test_gradients_of_one_size_are_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    run = backend.ByMagnitude.__call__
    monkeypatch.setattr(backend.ByMagnitude, "__call__", lambda self, parts: counted.append(len(parts)) or run(self, parts))
    model, x = Heads(), torch.randn(6, 24)
    both(model, [x], list(model.parameters()), [torch.randn(6, 8), torch.randn(6, 8) * 1e-3])
    both(model, [x], list(model.parameters()), [torch.randn(6, 8), torch.zeros(6, 8)])
    assert counted == [1, 1]
