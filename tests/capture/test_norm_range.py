"""Norms over fp16's whole range, forward and backward, through torch.compile on the twin, beside eager in fp32."""

import copy

import pytest
import torch
from capture_helpers import compile_for_twin, distance
from torch import nn

#: Roundings of fp16: two of the row's scale and root, one of each product, and those of the input itself.
BAR = 4e-3


class WrittenOut(nn.Module):
    """RMSNorm as Hugging Face's Llama writes it."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(torch.float32)
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class AsPower(WrittenOut):
    """As Gemma 3n writes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.pow(x.pow(2).mean(-1, keepdim=True) + 1e-6, -0.5))


NORMS = {
    "RMSNorm": (lambda: nn.RMSNorm(96), (2, 8, 96)),
    "RMSNorm written out": (lambda: WrittenOut(96), (2, 8, 96)),
    "RMSNorm written out as a power": (lambda: AsPower(96), (2, 8, 96)),
    "LayerNorm": (lambda: nn.LayerNorm(96), (2, 8, 96)),
    "GroupNorm": (lambda: nn.GroupNorm(4, 16), (2, 16, 6, 6)),
    "BatchNorm": (lambda: nn.BatchNorm2d(8), (4, 8, 6, 6)),
}


@pytest.mark.parametrize("rms", [1e-5, 1e-3, 1.0, 200.0, 20000.0])
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_trains_at_every_size_of_its_input(name, rms):
    torch._dynamo.reset()
    torch.manual_seed(0)
    build, shape = NORMS[name]
    ours = nn.Sequential(build())
    for parameter in ours.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    eager = copy.deepcopy(ours)
    x = (torch.randn(shape) * rms).clamp(-60000, 60000).half().float()
    grad = torch.randn(shape)
    outputs, inputs = [], []
    for model in (compile_for_twin(ours, precision="fp16"), eager):  # else raw inputs are normed by PyTorch
        inputs.append(x.clone().requires_grad_())
        outputs.append(model(inputs[-1]))
        outputs[-1].backward(grad)
    # Written out, epsilon is a number of the graph: fp16 holds 1e-6 to 1.4 %, of which a root leaves half.
    bar = 1e-2 if name.startswith("RMSNorm written out") and rms < 1e-2 else BAR
    assert distance(*outputs) < bar
    assert distance(inputs[0].grad, inputs[1].grad) < bar
    for mine, theirs in zip(ours.parameters(), eager.parameters(), strict=True):
        assert distance(mine.grad, theirs.grad) < bar
    for mine, theirs in zip(ours.buffers(), eager.buffers(), strict=True):
        # a mean of 1e-6 is 17 of fp16's steps
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3 * rms)
