"""Data parallel training: `DDP(torch.compile(m))` on two processes is one process on the joined batch."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
from capture_helpers import distance
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchane.capture import backend
from torchane.errors import TorchaneWarning

GRADIENT_BAR = 0.02


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))


def batch() -> torch.Tensor:
    return torch.randn(8, 8, generator=torch.Generator().manual_seed(1))


def start(rank: int, world_size: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world_size)


def work(rank: int, port: int, results: "torch.multiprocessing.Queue") -> None:
    start(rank, 2, port)
    model = make_model()
    known = len(backend.COMPILED)
    parallel = DistributedDataParallel(torch.compile(model, backend="ane"))
    parallel(batch()[4 * rank : 4 * rank + 4]).square().mean().backward()
    dispatches = [len(plan.dispatches) for found in backend.COMPILED[known:] for plan in found.plans.values()]
    results.put((rank, dispatches, [parameter.grad.numpy() for parameter in model.parameters()]))
    dist.destroy_process_group()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_match_one_on_the_joined_batch(port) -> None:
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    workers = torch.multiprocessing.spawn(work, (port, results), nprocs=2, join=False)
    found = [results.get() for _ in range(2)]
    while not workers.join():
        pass
    alone = make_model()
    alone(batch()).square().mean().backward()
    for rank, dispatches, grads in found:
        assert dispatches, f"process {rank} ran nothing in programs"
        assert all(dispatches)
        for grad, parameter in zip(grads, alone.parameters(), strict=True):
            assert distance(torch.from_numpy(grad), parameter.grad) < GRADIENT_BAR
    for first, second in zip(found[0][2], found[1][2], strict=True):
        assert (first == second).all()  # the processes agree to the bit


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiling_the_wrapper_is_explained(port) -> None:
    start(0, 1, port)
    try:
        torch._dynamo.reset()
        model = torch.compile(DistributedDataParallel(make_model()), backend=backend.ane)
        with pytest.warns(TorchaneWarning, match=r"Turn them round: DistributedDataParallel\(torch.compile\(model"):
            model(batch())
    finally:
        dist.destroy_process_group()
        torch._dynamo.reset()
