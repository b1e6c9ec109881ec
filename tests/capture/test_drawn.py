"""Masks that a kernel of ours draws are torch's, and so is its generator's state afterwards."""

import pytest
import torch
from torch import fx

from torchane.capture import drawn as module
from torchane.capture.drawn import draw_ourselves, drawn

aten = torch.ops.aten


@pytest.fixture(params=[True, False])
def is_torchs(request, monkeypatch):
    """Whether our kernel draws; else torch does."""
    monkeypatch.setattr(module, "_is_torchs", module._is_torchs if request.param else lambda: False)


def test_a_mask_and_what_is_drawn_after_it_are_torchs(is_torchs) -> None:
    torch.manual_seed(5)
    wanted = torch.empty(3, 5000, dtype=torch.bool).bernoulli_(0.9), torch.randn(7)
    torch.manual_seed(5)
    found = drawn((3, 5000), 0.9), torch.randn(7)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_where_another_thread_draws_meanwhile_nothing_is_drawn_twice(monkeypatch) -> None:
    """The state has moved on while ours was drawing: torch draws from where it is now."""
    real = module.native.bernoulli
    monkeypatch.setattr(module.native, "bernoulli", lambda *args: (torch.rand(3), real(*args))[1])
    monkeypatch.setattr(module, "_is_torchs", lambda: True)
    torch.manual_seed(5)
    torch.rand(3)
    wanted = torch.empty(5000, dtype=torch.bool).bernoulli_(0.9)
    torch.manual_seed(5)
    assert torch.equal(drawn((5000,), 0.9), wanted)


def test_draws_that_the_kernel_does_not_know_are_left_alone() -> None:
    graph = fx.Graph()

    def draw(value, *args, **kwargs):
        blank = graph.call_function(aten.full.default, (list(value.shape), 0), {"dtype": value.dtype})
        node = graph.call_function(aten.bernoulli.p, (blank, *args), kwargs)
        node.meta["val"] = value
        return node

    large = torch.empty(100, 100, dtype=torch.bool)
    nodes = [
        draw(large, 0.5), draw(torch.empty(10, dtype=torch.bool), 0.5), draw(large.float(), 0.5), draw(large.T[:, ::2], 0.5), draw(large, 0.5, generator=None),
    ]  # fmt: skip
    graph.output(tuple(nodes))
    draw_ourselves(graph)
    assert [node.target is drawn for node in nodes] == [True, False, False, False, False]
    assert nodes[0].args == ((100, 100), 0.5) and len(graph.find_nodes(op="call_function", target=aten.full.default)) == 4
