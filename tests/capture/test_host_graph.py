"""What PyTorch runs between programs: rows added in place are what torch's two tables and their sum give, and memory is read as traced."""

import copy

import pytest
import torch
from capture_helpers import compile_for_twin, distance
from torch import nn

from torchane.capture import backend, host_graph
from torchane.errors import TorchaneWarning

aten = torch.ops.aten


class Tied(nn.Module):
    """tokens (B, S) -> scores (B, S, V), the table of the look-up being the head's weight."""

    def __init__(self, padding: int | None = None, by_frequency: bool = False, also_scaled: bool = False, read_twice: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 32, padding_idx=padding, scale_grad_by_freq=by_frequency)
        self.mix = nn.Linear(32, 32)
        self.also_scaled, self.read_twice = also_scaled, read_twice

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        looked_up = self.table(tokens)
        if self.read_twice:  # as an encoder and a decoder do
            looked_up = looked_up + torch.tanh(self.table(tokens.flip(1)))
        scores = nn.functional.linear(torch.tanh(self.mix(looked_up)), self.table.weight)
        return scores * self.table.weight.square().mean() if self.also_scaled else scores


def trained(model: nn.Module, forward: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    nn.functional.cross_entropy(forward(tokens).flatten(0, 1), tokens.roll(1).flatten()).backward()
    return model.table.weight.grad


@pytest.mark.parametrize("keywords", [{}, {"padding": 3}, {"by_frequency": True}, {"also_scaled": True}, {"read_twice": True}])
def test_a_tied_tables_gradient_is_that_of_float64(keywords: dict[str, object]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Tied(**keywords)
    double = copy.deepcopy(model).double()
    tokens = torch.randint(0, 8, (2, 16), generator=torch.Generator().manual_seed(0))  # each many times
    ours, exact = trained(model, compile_for_twin(model), tokens), trained(double, double, tokens)
    assert distance(ours.double(), exact) < 0.01
    assert distance(ours[:8].double(), exact[:8]) < 0.01


def test_a_tied_tables_gradient_is_made_in_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    add_rows = host_graph._add_rows

    def watched(total: torch.Tensor, *rest: object) -> torch.Tensor:
        result = add_rows(total, *rest)
        seen.append((total.data_ptr(), result.data_ptr()))
        return result

    monkeypatch.setattr(host_graph, "_add_rows", watched)
    torch._dynamo.reset()
    model = Tied()
    gradient = trained(model, compile_for_twin(model), torch.arange(32).reshape(2, 16))
    assert seen == [(gradient.data_ptr(), gradient.data_ptr())]


@pytest.mark.parametrize("padding", [-1, 5])
def test_rows_added_in_place_have_the_bits_of_the_sum_of_tables(padding: int) -> None:
    generator = torch.Generator().manual_seed(0)
    total, grad = torch.randn(50, 8, generator=generator), torch.randn(4, 30, 8, generator=generator)
    tokens = torch.randint(0, 20, (4, 30), generator=generator)
    wanted = total + aten.embedding_dense_backward.default(grad, tokens, 50, padding, False)
    assert torch.equal(host_graph._add_rows(total, grad, tokens, padding), wanted)


def test_a_gradient_scaled_by_frequency_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("rows were added without their scale")

    monkeypatch.setattr(host_graph, "_add_rows", refuse)
    torch._dynamo.reset()
    model = Tied(by_frequency=True)
    trained(model, compile_for_twin(model), torch.zeros(2, 16, dtype=torch.int64))
    assert any("embedding_dense_backward" in op for op, _ in backend.COMPILED[-1].plans["backward"].host_ops)


class Turned(nn.Module):
    """x (B, S, C) -> (B, C, 4). Its softplus' gradient lies turned, and torch's trace says that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 8), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(nn.functional.softplus(self.inner(x)).transpose(1, 2))


def test_a_gradient_that_lies_otherwise_than_traced_is_right_in_float32() -> None:
    """Inputs beyond fp16: PyTorch runs the graph, whose next op is a view."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Turned()
    other, x = copy.deepcopy(model), 1e5 * torch.randn(2, 4, 16)
    with pytest.warns(TorchaneWarning, match="PyTorch computes the forward, and its backward, in float32"):
        compile_for_twin(model)(x).square().sum().backward()
    other(x).square().sum().backward()
    assert all(torch.allclose(mine.grad, theirs.grad) for mine, theirs in zip(model.parameters(), other.parameters(), strict=True))


def test_ops_that_read_memory_read_it_as_traced() -> None:
    """aten.as_strided of a value that lies turned would read other numbers."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(3, 4)
    graph.output((graph.call_function(aten.as_strided.default, (x, [2, 2], [4, 1])), graph.call_function(aten.view.default, (x, [12]))))
    host_graph.read_as_traced(graph)
    values = torch.arange(12.0).view(3, 4)
    run = torch.fx.GraphModule(nn.Module(), graph)
    for lying in (values, values.t().contiguous().t()):
        strided, flat = run(lying)
        assert strided.tolist() == [[0, 1], [4, 5]] and flat.tolist() == values.flatten().tolist()
