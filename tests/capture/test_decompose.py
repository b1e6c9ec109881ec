"""What is taken apart our own way, in whole graphs on the twin, beside eager fp32."""

from collections.abc import Callable, Iterator

import pytest
import torch
from capture_helpers import compile_for_twin, distance
from torch import nn


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()


class Filled(nn.Module):
    """Half a product, then the other half, written into new memory: how DeepSeek joins the parts of its keys."""

    def __init__(self, make: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.make, self.linear = make, nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        joined = self.make(y)
        joined[..., :12] = y[..., 20:] * 2
        joined[..., 12:] = y[..., :20]
        return joined @ self.linear.weight


MAKERS = {
    "empty": lambda y: torch.empty(y.shape),
    "empty_like": torch.empty_like,
    "empty_like, transposed": lambda y: torch.empty_like(y.transpose(0, 1)).transpose(0, 1),
    "new_empty": lambda y: y.new_empty(y.shape),
    "new_empty_strided": lambda y: y.new_empty_strided(y.shape, (32, 64, 1)),
    "empty_strided": lambda y: torch.empty_strided(y.shape, (512, 32, 1)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_memory_that_is_filled_in_parts_holds_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    model = Filled(MAKERS[name])
    check(model, torch.randn(2, 16, 32))


class Masked(nn.Module):
    """Longformer's: infinities made between two ops of the host, where no program is worth it, and chosen in a program."""

    def __init__(self, low: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.low, self.linear = low, nn.Linear(32, 32)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        scores = self.linear(x)
        scores = scores.as_strided(scores.shape, scores.stride())
        low = self.low(scores)
        scores = torch.tanh(scores).as_strided(scores.shape, scores.stride())
        return torch.where(seen, scores, low).softmax(-1) @ self.linear.weight


@pytest.mark.filterwarnings("ignore:.*aten.as_strided:torchane.capture.report.TorchaneWarning")
@pytest.mark.parametrize("low", [lambda y: torch.full_like(y, -torch.inf), lambda y: y.new_full(y.shape, -torch.inf)])
def test_infinities_that_mask_are_no_numbers_of_another_program(low: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)
    seen = torch.rand(2, 16, 32) < 0.7
    check(Masked(low), torch.randn(2, 16, 32), seen)


def check(model: nn.Module, *inputs: torch.Tensor) -> None:
    """Output and gradients within 2^-8: four fp16 roundings in a row, their products included."""
    found = []
    for forward in (compile_for_twin(model), model):
        model.zero_grad()
        output = forward(*inputs)
        output.square().sum().backward()
        found.append([output, *(parameter.grad.clone() for parameter in model.parameters())])
    for ours, theirs in zip(*found, strict=True):
        assert torch.isfinite(theirs).all() and distance(ours, theirs) < 2**-8
