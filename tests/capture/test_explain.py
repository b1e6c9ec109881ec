"""`torchane.explain`: every ATen call of a training step, in exactly one place."""

import json

import pytest
import torch
from strangers import NETWORKS, TEXT
from torch import nn
from zoo import FAMILIES, Build, batch_for, image_batch, text_batch

import torchane
from torchane.capture import backend, report
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


#: A Transformer with a padded batch and dropout, an MLP and a CNN; the long tier has them all.
QUICK = ["GPT-2", "MLP", "smooth ResNet"]


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in FAMILIES if name not in QUICK)])
def test_every_call_of_a_model_has_one_place(name, monkeypatch) -> None:
    check_every_call_has_one_place(FAMILIES[name], batch_for(name), monkeypatch)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::torchane.capture.report.TorchaneWarning")  # what no program holds is named, and right
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # BLOOM's own way with its gelu
@pytest.mark.filterwarnings("ignore:.*lru_cache:UserWarning")  # Mamba's
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo's own, after Longformer's graph breaks
@pytest.mark.parametrize("name", [*TEXT, *NETWORKS])
def test_every_call_of_a_strangers_model_has_one_place(name, monkeypatch) -> None:
    draws = torch.Generator().manual_seed(0)
    build = TEXT.get(name) or NETWORKS[name]
    check_every_call_has_one_place(build, text_batch(draws, "right") if name in TEXT else image_batch(16, draws), monkeypatch)


def check_every_call_has_one_place(build: Build, batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls are read from the graphs, the programs' from what was lowered, the host's from the plans: what
    explain reports must be those, each once."""
    graphs = []

    def reported(name, cut):
        graphs.append((cut, rows := report.rows_of(name, cut)))
        return rows

    monkeypatch.setattr(backend, "rows_of", reported)
    torch._dynamo.reset()
    torch.manual_seed(0)
    found = torchane.explain(build().train(), **batch)
    torch._dynamo.reset()
    assert [rows[0].graph for _, rows in graphs] == [plan.name for plan in found.plans]
    assert {plan.name for plan in found.plans} == {"forward", "backward"}
    assert [row for _, rows in graphs for row in rows] == list(found.rows)
    for (cut, rows), plan in zip(graphs, found.plans, strict=True):
        calls = [node.name for node in cut.graph.nodes if node.op == "call_function"]
        assert len(set(calls)) == len(calls)
        assert calls == [row.name for row in rows]
        lowered = [node.name for region in cut.regions for node in region.nodes]
        assert sorted(lowered) == sorted(row.name for row in rows if row.place == "program")
        on_host = [op for step in plan.steps if isinstance(step, HostCall) for op, _ in step.ops]
        assert sorted(on_host) == sorted(row.op for row in rows if row.place == "host")
        assert {row.place for row in rows} <= {"program", "host", "constant", "view"}


def test_multiply_adds_are_counted_by_torchs_formulas(found) -> None:
    forward = 32 * (16 * 48 + 48 * 32)
    dx, dw = 32 * (16 * 48 + 48 * 32), 32 * (16 * 48 + 48 * 32)
    assert found.macs == forward + dx + dw
    assert found.share("program") == 1.0


def test_rows_name_module_line_and_reason(found) -> None:
    lookup = next(row for row in found.rows if "embedding.default" in row.op)
    assert (lookup.place, lookup.module) == ("host", "embed")
    assert lookup.line.startswith("test_explain.py:")
    assert "looked up on the host" in lookup.why


def test_json_and_table_say_the_same(found) -> None:
    data = json.loads(found.to_json())
    assert len(data["rows"]) == len(found.rows)
    assert data["macs_share"]["program"] == 1.0
    assert data["memory_bytes"]["total"] == found.memory.total > 0
    assert f"{len(found.rows)} calls in 2 graphs" in str(found)
