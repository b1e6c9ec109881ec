"""Products of 8-bit integers (W8A8): an int32 sum of up to a million is no fp16 number; scaled exactly, or PyTorch's."""

from collections.abc import Callable

import pytest
import torch
from capture_helpers import compile_for_twin, distance
from torch import nn

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*runs? in PyTorch on the CPU:torchane.errors.TorchaneWarning", "ignore:.*infinite or NaN:torchane.errors.TorchaneWarning"
)

#: Weights of a program are fp16, and so is what leaves it.
FP16_BAR = 4 * 2**-10


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as integers from -127 to 127, and their scales (rows, 1)."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().clamp(-127, 127).to(torch.int8), scale


def per_token(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    a, s = rounded(x)
    return torch._int_mm(a, w.t()).to(x.dtype) * s * scale


def per_tensor(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    s = x.abs().max() / 127
    return torch._int_mm((x / s).round().to(torch.int8), w.t()) * (s * scale)


def scales_joined_first(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    a, s = rounded(x)
    return torch._int_mm(a, w.t()).float() * (s @ scale[None])


def with_an_integer_bias(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    a, s = rounded(x)
    return (torch._int_mm(a, w.t()) + 100 * torch.arange(len(w), dtype=torch.int32)).float() * s * scale


def with_a_zero_point(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    s = (high - low) / 255
    zero = (-128 - low / s).round()
    a = (x / s + zero).round().clamp(-128, 127).to(torch.int8)
    return (torch._int_mm(a, w.t()).float() - zero * w.float().sum(1)) * s * scale


def in_int32(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    a, s = rounded(x)
    return (a.to(torch.int32) @ w.to(torch.int32).t()).float() * s * scale


def integers_as_floats(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    a, s = rounded(x)
    return (a.float() @ w.float().t()) * s * scale


def weights_alone(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(x, w.to(x.dtype)) * scale


class W8A8(nn.Module):
    def __init__(self, inputs: int, outputs: int, how: Callable[..., torch.Tensor]):
        super().__init__()
        weight, scale = rounded(torch.randn(outputs, inputs) / inputs**0.5)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale[:, 0])
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(x, self.weight, self.scale)


def assert_agrees(how: Callable[..., torch.Tensor]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = nn.Sequential(W8A8(256, 64, how), nn.SiLU(), W8A8(64, 16, how)), torch.randn(32, 256)
    with torch.no_grad():
        assert distance(compile_for_twin(model)(x), model(x)) < FP16_BAR


def test_a_layer_of_8_bit_products_is_as_eagers() -> None:
    assert_agrees(per_token)


@pytest.mark.long
@pytest.mark.parametrize(
    "how", [per_tensor, scales_joined_first, with_an_integer_bias, with_a_zero_point, in_int32, integers_as_floats, weights_alone]
)
def test_other_ways_to_write_it_are_as_eagers(how: Callable[..., torch.Tensor]) -> None:
    assert_agrees(how)
