"""Which values of a backward are a weight's gradient and nothing else."""

import pytest
import torch
from torch import nn

from torchane.capture import backend
from torchane.capture.gradients import only_gradients
from torchane.plan import Unstage
from torchane.runtime.twin import TwinDevice


def left_of(model, *inputs, monkeypatch):
    """Of the backward of a model: what may stay in surfaces, and the weights, by the names of their modules."""
    found = []
    monkeypatch.setattr(backend, "only_gradients", lambda *given: (found.append(only_gradients(*given)), found[-1])[1])
    torch._dynamo.reset()
    torch.compile(model, backend=backend.ane, options={"device": "twin"})(*inputs).square().mean().backward()
    compiled = backend.COMPILED[-1]
    names = {aot: compiled.inputs.names[index] for index, aot in compiled.weight_names.items()}
    unstaged = {copy.value for step in compiled.plans["backward"].steps if isinstance(step, Unstage) for copy in step.copies}
    assert found[-1].keys() <= unstaged
    return sorted(names[weight] for weight in found[-1].values())


def test_gradients_of_linear_layers_are_and_one_that_is_added_up_is_not(monkeypatch):
    class Indexed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.inner = nn.Parameter(torch.randn(64, 32)), nn.Linear(32, 32, bias=False)

        def forward(self, tokens):
            return self.inner(self.table[tokens]).tanh() @ self.table.T

    (only,) = left_of(Indexed(), torch.arange(32).view(2, 16), monkeypatch=monkeypatch)
    assert "inner.weight" in only


def test_so_is_a_tables_that_rows_of_an_embedding_are_added_to(monkeypatch):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.inner = nn.Embedding(64, 32), nn.Linear(32, 32, bias=False)

        def forward(self, tokens):
            return self.inner(self.table(tokens)).tanh() @ self.table.weight.T

    inner, table = left_of(Tied(), torch.arange(32).view(2, 16), monkeypatch=monkeypatch)
    assert "inner.weight" in inner and "table.weight" in table


@pytest.mark.parametrize("frees_processor", [False, True])
def test_they_leave_surfaces_where_host_work_goes_on_beside_dispatches(monkeypatch, frees_processor):
    """There they are widened meanwhile, and the surfaces of a step are those of the one before."""
    monkeypatch.setattr(TwinDevice, "frees_processor", frees_processor)
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(32, 64, bias=False), nn.Tanh(), nn.Linear(64, 32, bias=False))
    torch.compile(model, backend=backend.ane, options={"device": "twin"})(torch.randn(16, 32)).square().mean().backward()
    assert backend.COMPILED[-1].left_bytes == (0 if frees_processor else (4 + 2) * 32 * 64)  # of the first layer the backward reads no weight, so none lies ready
