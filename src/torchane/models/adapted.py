"""A model with low-rank adapters beside every linear layer of its blocks, all else frozen: what `torchane plan --lora` prices.

    y = W x   ->   y = W x + scale * B (A x)       A (rank, in), B (out, rank), trained; W frozen
Source: Hu et al. 2021, arXiv 2106.09685. Adapters that are trained and saved are PEFT's (finetune/), which cannot be made of fake tensors.
"""

import torch
from torch import nn

from torchane.models.gpt2 import Conv1D

#: PEFT's default: alpha 8 over a rank of 8.
SCALE = 1.0


class Adapted(nn.Module):
    """A linear layer and its adapter."""

    def __init__(self, base: nn.Linear | Conv1D, rank: int):
        super().__init__()
        outputs, inputs = base.weight.shape if isinstance(base, nn.Linear) else reversed(base.weight.shape)
        self.base = base
        self.a = nn.Linear(inputs, rank, bias=False)
        self.b = nn.Linear(rank, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + SCALE * self.b(self.a(x))


def with_adapters(model: nn.Module, rank: int) -> nn.Module:
    """The model itself, changed: its parameters are frozen, and its blocks (the lists of modules in it) have adapters of that rank."""
    model.requires_grad_(False)
    blocks = [block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module]
    linear = [
        (parent, name, child) for block in blocks for parent in block.modules() for name, child in parent.named_children()
        if isinstance(child, nn.Linear | Conv1D)
    ]  # fmt: skip
    for parent, name, child in linear:
        setattr(parent, name, Adapted(child, rank))
    return model
