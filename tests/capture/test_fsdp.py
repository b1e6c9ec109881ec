"""Sharded training: a compiled model under `fully_shard`, on two gloo processes, trains as eager PyTorch does on one.

torch gathers a parameter into a storage that it empties again after use; what holds a view of one would keep it from that.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from capture_helpers import distance
from test_ddp import gloo, in_two_processes, start  # noqa: F401  (a fixture)
from torch import nn

from torchane.capture import backend

#: Four steps of Adam at this rate move the weights by a tenth of their size; fp16 moves the movement by a few percent.
STEPS, RATE, BAR = 4, 1e-2, 0.05


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


def make_model() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), Block())


def train(model: nn.Module, rows: slice) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    target = torch.randn(8, 16, generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(STEPS):
        loss = nn.functional.mse_loss(model(x[rows]), target[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def work(rank: int, folder: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    start(rank, 2, folder / "store")
    model = make_model()
    known = len(backend.COMPILED)
    for block in model:
        block.compile(backend="ane", options={"device": "twin", "cache": "off"}, dynamic=False)
        fully_shard(block)
    fully_shard(model)
    losses = train(model, slice(4 * rank, 4 * rank + 4))
    dispatches = [len(plan.dispatches) for found in backend.COMPILED[known:] for plan in found.plans.values()]
    whole = {name.replace(".", "/"): parameter.full_tensor().detach().numpy() for name, parameter in model.named_parameters()}
    np.savez(folder / f"rank{rank}.npz", dispatches=dispatches, losses=losses, **whole)
    os._exit(0)  # see test_ddp.work


@pytest.mark.long
def test_two_processes_with_sharded_parameters_train_as_one_eager_process(gloo, tmp_path: Path) -> None:  # noqa: F811
    in_two_processes(work, tmp_path)
    alone, start_of = make_model(), make_model()
    losses = train(alone, slice(0, 8))
    found = [np.load(tmp_path / f"rank{rank}.npz") for rank in range(2)]
    for rank, result in enumerate(found):
        assert result["dispatches"].size and result["dispatches"].all(), f"process {rank} ran nothing in programs"
    np.testing.assert_allclose(np.mean([result["losses"] for result in found], axis=0), losses, rtol=0.01)
    for (name, right), before in zip(alone.named_parameters(), start_of.parameters(), strict=True):
        first, second = (torch.from_numpy(result[name.replace(".", "/")]) for result in found)
        assert distance(first - before, right - before) < BAR, name
        assert torch.equal(first, second)
