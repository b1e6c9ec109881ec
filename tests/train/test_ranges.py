"""Range control end to end: random layers with weights and gradients across fp16's range, on the twin's engine arithmetic.

The oracle is PyTorch in float64 with the same weights. Scales are drawn so that plain loss scaling, which has one
power of two for all gradients of a backward pass, cannot hold every product in the engine's window.
"""

import copy

import pytest
import torch
from torch import nn

from torchane.capture import backend
from torchane.errors import NumericsError

SIZES = (32, 64, 96)


class RandomLayers(nn.Module):
    """Three blocks of linear maps: plain, gated (two maps multiplied) or residual; every weight has a scale of its own."""

    def __init__(self, seed: int):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)

        def pick(low: int, high: int) -> int:
            return int(torch.randint(low, high, (1,), generator=draw))

        width = self.inputs = SIZES[pick(0, 3)]
        self.kinds, blocks = [], []
        for _ in range(3):
            kind = ("plain", "gated", "residual")[pick(0, 3)]
            out = width if kind == "residual" else SIZES[pick(0, 3)]
            maps = [nn.Linear(width, out, bias=False) for _ in range(2 if kind == "gated" else 1)]
            for one in maps:
                scale = 2.0 ** pick(-24, 15)
                one.weight.data = scale * torch.randn(out, width, generator=draw) / width**0.5
            self.kinds.append(kind)
            blocks.append(nn.ModuleList(maps))
            width = out
        self.blocks = nn.ModuleList(blocks)
        self.x = 2.0 ** pick(-10, 8) * torch.randn(2, 32, self.inputs, generator=draw)
        self.gradient = 2.0 ** pick(-24, 15) * torch.randn(2, 32, width, generator=draw)

    def forward(self, x):
        for kind, maps in zip(self.kinds, self.blocks):
            y = maps[0](x)
            x = x + y if kind == "residual" else y * maps[1](x) if kind == "gated" else y
        return x


def errors(seed: int, ranges: str, arithmetic: str = "engine") -> list[float]:
    """The relative error of every weight's gradient."""
    torch.compiler.reset()
    ours = RandomLayers(seed)
    exact = copy.deepcopy(ours).double()
    compiled = torch.compile(ours, backend="ane", options={"device": "twin", "arithmetic": arithmetic, "ranges": ranges})
    try:
        compiled(ours.x).backward(ours.gradient)
    except NumericsError:
        return [float("inf")]
    exact(ours.x.double()).backward(ours.gradient.double())
    return [
        ((p.grad.double() - q.grad).norm() / q.grad.norm()).item() for p, q in zip(ours.parameters(), exact.parameters(), strict=True)
    ]
