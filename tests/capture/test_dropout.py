"""Dropout draws the masks of eager from the same seed, however its input lies in memory."""

import copy

import pytest
import torch
from capture_helpers import compile_for_twin, distance
from torch import nn


class Between(nn.Module):
    """A layer, a dropout in the middle of it all, and a layer."""

    def __init__(self, dropout: nn.Module, perm: tuple[int, ...]):
        super().__init__()
        self.dropout, self.perm = dropout, perm
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        back = [self.perm.index(axis) for axis in range(len(self.perm))]
        return self.last(self.dropout(self.first(x).permute(self.perm)).permute(back))


CASES = {
    "in order": (lambda: Between(nn.Dropout(0.5), (0, 1, 2)), (2, 8, 16)),
    "transposed": (lambda: Between(nn.Dropout(0.5), (1, 0, 2)), (2, 8, 16)),
    "turned about": (lambda: Between(nn.Dropout(0.5), (2, 0, 1)), (2, 8, 16)),
    "channels": (lambda: Between(nn.Dropout2d(0.5), (0, 3, 1, 2)), (2, 4, 4, 16)),
    "nn.MultiheadAttention": (lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.3), (8, 2, 16)),
    "nn.TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.3, batch_first=True, activation="gelu"), (2, 8, 16)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_masks_are_eagers(case):
    torch._dynamo.reset()
    torch.manual_seed(0)
    build, shape = CASES[case]
    ours = nn.Sequential(build()).train()
    eager = copy.deepcopy(ours)
    x, grad = torch.randn(shape), torch.randn(shape)
    outputs = []
    for model in (compile_for_twin(ours), eager):
        torch.manual_seed(1)
        outputs.append(model(x))
        outputs[-1].backward(grad)
    assert distance(*outputs) < 0.005  # one mask entry of 256 that differs would be 0.06
    for (name, mine), theirs in zip(ours.named_parameters(), eager.parameters(), strict=True):
        assert distance(mine.grad, theirs.grad) < 0.01, name
