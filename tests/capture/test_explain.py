"""`torchane.explain`: every ATen call of a training step, in exactly one place."""

import json

import pytest
import torch
from torch import nn

import torchane
from torchane.capture import backend
from torchane.plan import HostCall


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(32, 16), nn.BatchNorm1d(16)
        self.up, self.head = nn.Linear(16, 48), nn.Linear(48, 32)
        self.drop = nn.Dropout(0.1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(tokens).flatten(0, 1))
        return nn.functional.cross_entropy(self.head(self.drop(torch.tanh(self.up(x)))), tokens.flatten())


@pytest.fixture(scope="module")
def found():
    torch._dynamo.reset()
    known = len(backend.COMPILED)
    model, tokens = Net(), torch.arange(32).view(2, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    explanation = torchane.explain(model, tokens)
    assert torch.equal(stream, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(backend.COMPILED) == known
    yield explanation
    torch._dynamo.reset()


def test_forward_and_backward_are_explained(found) -> None:
    assert [plan.name for plan in found.plans] == ["forward", "backward"]
    assert {row.graph for row in found.rows} == {"forward", "backward"}


def test_every_call_is_in_a_program_or_on_the_host_and_none_in_both(found) -> None:
    for plan in found.plans:
        rows = [row for row in found.rows if row.graph == plan.name]
        assert len({row.name for row in rows}) == len(rows)
        assert {row.place for row in rows} <= {"program", "host", "constant", "view"}
        ran_on_host = [op for step in plan.steps if isinstance(step, HostCall) for op, _ in step.ops]
        assert sorted(ran_on_host) == sorted(row.op for row in rows if row.place == "host")


def test_multiply_adds_are_counted_by_torchs_formulas(found) -> None:
    forward = 32 * (16 * 48 + 48 * 32)
    dx, dw = 32 * (16 * 48 + 48 * 32), 32 * (16 * 48 + 48 * 32)
    assert found.macs == forward + dx + dw
    assert found.share("program") == 1.0


def test_rows_name_module_line_and_reason(found) -> None:
    lookup = next(row for row in found.rows if "embedding.default" in row.op)
    assert (lookup.place, lookup.module) == ("host", "embed")
    assert lookup.line.startswith("test_explain.py:")
    assert "no rule" in lookup.why


def test_json_and_table_say_the_same(found) -> None:
    data = json.loads(found.to_json())
    assert len(data["rows"]) == len(found.rows)
    assert data["macs_share"]["program"] == 1.0
    assert data["memory_bytes"]["total"] == found.memory.total > 0
    assert f"{len(found.rows)} calls in 2 graphs" in str(found)
