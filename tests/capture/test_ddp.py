"""Data parallel training: `DDP(torch.compile(m))` on two processes is one process on the joined batch."""

import datetime
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
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


#: How long two processes may take to find each other, and to answer, before the test fails.
MEET_S, ANSWER_S = 60, 300

#: Two processes that add a number: what a machine must be able to do before torchane has a part in it.
PROBE = """
import datetime, os, sys, torch, torch.distributed as dist
rank, store, limit = int(sys.argv[1]), sys.argv[2], datetime.timedelta(seconds=int(sys.argv[3]))
dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2, timeout=limit)
total = torch.ones(1)
dist.all_reduce(total)
os._exit(0 if total.item() == 2 else 1)  # see work()
"""


def start(rank: int, world_size: int, store: Path) -> None:
    limit = datetime.timedelta(seconds=MEET_S)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), world_size), rank=rank, world_size=world_size, timeout=limit)


def work(rank: int, folder: Path) -> None:
    start(rank, 2, folder / "store")
    model = make_model()
    known = len(backend.COMPILED)
    parallel = DistributedDataParallel(torch.compile(model, backend="ane"))
    parallel(batch()[4 * rank : 4 * rank + 4]).square().mean().backward()
    dispatches = [len(plan.dispatches) for found in backend.COMPILED[known:] for plan in found.plans.values()]
    grads = {f"grad{i}": parameter.grad.numpy() for i, parameter in enumerate(model.parameters())}
    np.savez(folder / f"rank{rank}.npz", dispatches=dispatches, **grads)
    # torch's ProcessGroupGloo, when it dies with the Reducer, joins its thread with the interpreter's lock held, and that
    # thread may be waiting for the lock to drop the last collective (seen in 2.13.0 with gdb): a deadlock, now and then.
    os._exit(0)


@pytest.fixture(scope="module")
def gloo(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where two processes cannot reach each other, as where the loopback interface is down."""
    tmp_path = tmp_path_factory.mktemp("gloo")
    probes = [
        subprocess.Popen(
            [sys.executable, "-c", PROBE, str(rank), str(tmp_path / "probe"), str(MEET_S)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        said = [probe.communicate(timeout=2 * MEET_S)[1] for probe in probes]
    except subprocess.TimeoutExpired:
        said = [f"no answer within {2 * MEET_S} s"]
    finally:
        for probe in probes:
            probe.kill()
            probe.wait()
    if any(probe.returncode for probe in probes):
        pytest.skip(f"needs two gloo processes that reach each other: {said[0].strip().splitlines()[-1:]}")


def in_two_processes(work, folder: Path) -> None:
    """work(rank, folder) in each; raises what a worker raised."""
    workers = torch.multiprocessing.spawn(work, (folder,), nprocs=2, join=False)
    try:
        ends = time.monotonic() + ANSWER_S
        while not workers.join(timeout=1):
            assert time.monotonic() < ends, f"the workers did not answer within {ANSWER_S} s"
    finally:
        for process in workers.processes:
            process.kill()


def test_two_processes_match_one_on_the_joined_batch(gloo, tmp_path: Path) -> None:
    in_two_processes(work, tmp_path)
    alone = make_model()
    alone(batch()).square().mean().backward()
    found = [np.load(tmp_path / f"rank{rank}.npz") for rank in range(2)]
    for rank, result in enumerate(found):
        assert result["dispatches"].size, f"process {rank} ran nothing in programs"
        assert result["dispatches"].all()
    for i, parameter in enumerate(alone.parameters()):
        first, second = (result[f"grad{i}"] for result in found)
        assert distance(torch.from_numpy(first), parameter.grad) < GRADIENT_BAR
        assert (first == second).all()  # the processes agree to the bit


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.map(x))


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Block(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture
def alone(gloo, tmp_path: Path) -> Iterator[None]:
    """A group of one process, which talks to nobody."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    torch._dynamo.reset()
    yield
    dist.destroy_process_group()
    torch._dynamo.reset()


def compiled_wrapper(model: nn.Module) -> tuple[list[str], list[str]]:
    """What torchane warns of while DDP(model) is compiled and run, and where its matrix products run."""
    known = len(backend.COMPILED)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.compile(DistributedDataParallel(model), backend=backend.ane)(batch()).sum().backward()
    places = [row.place for found in backend.COMPILED[known:] for row in found.rows if "mm" in row.op]
    return [str(warning.message) for warning in said if issubclass(warning.category, TorchaneWarning)], places


def test_compiling_the_wrapper_of_torchs_own_modules_is_explained(alone) -> None:
    said, places = compiled_wrapper(make_model())
    assert not places
    assert "is an nn.Sequential" in said[0] and "the whole model runs in PyTorch" in said[0]
    assert "Turn them round: DistributedDataParallel(torch.compile(model" in said[0]


def test_compiling_the_wrapper_of_a_users_module_is_one_graph_and_no_warning(alone) -> None:
    said, places = compiled_wrapper(Whole())
    assert set(places) == {"program"}
    assert not said


def test_the_graphs_within_a_container_of_torchs_own_are_named(alone) -> None:
    said, places = compiled_wrapper(nn.Sequential(Block(), Block(), nn.Linear(8, 4)))
    assert set(places) == {"program"}
    assert "Block in it become graphs of their own, and the rest runs in PyTorch" in said[0]
