"""Graphs are kept no longer than torch keeps them, and only the last used hold memory."""

import gc

import pytest
import torch
from capture_helpers import distance
from torch import nn

from torchane.capture import backend
from torchane.capture import compiled as compiled_module
from torchane.capture.compiled import told
from torchane.capture.kept import Kept, Recent


class Thing:
    pass


def test_numbers_stay_when_others_are_gone() -> None:
    kept: Kept[Thing] = Kept()
    first, second = Thing(), Thing()
    for one in (first, Thing(), second):
        kept.append(one)
    gc.collect()
    assert len(kept) == 3 and kept[:] == [first, second]
    assert kept[-1] is second and kept.index(second) == 2
    with pytest.raises(LookupError, match="torch dropped it"):
        kept[1]


def test_the_last_is_always_there_and_the_one_before_is_not_held() -> None:
    kept: Kept[Thing] = Kept()
    kept.append(Thing())
    assert isinstance(kept[-1], Thing)
    kept.append(Thing())
    gc.collect()
    assert len(kept[:]) == 1


def test_what_falls_behind_rests_once() -> None:
    rested: list[int] = []
    things = [Thing() for _ in range(4)]
    recent = Recent[Thing](lambda thing: rested.append(things.index(thing)))
    for number in (0, 1, 0, 2, 2, 3):
        recent.use(things[number], 2)
    assert rested == [1, 0]


def held_bytes(compiled: backend.Compiled) -> int:
    return compiled.pool.allocated_bytes + sum(held.buffer.type.size_bytes for held in compiled.weights.held.values())


def test_memory_does_not_grow_with_the_number_of_shapes(monkeypatch) -> None:
    monkeypatch.setattr(compiled_module, "WARM_GRAPHS", 2)
    torch._dynamo.reset()
    before = len(backend.COMPILED)
    torch.manual_seed(0)
    raw = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 16))
    model = torch.compile(raw, backend=backend.ane, dynamic=False, options={"device": "twin"})
    for turn in range(2):
        for length in range(2, 8):
            x = torch.randn(length, 16)
            y = model(x)
            y.square().mean().backward()
            assert distance(y.detach(), raw(x).detach()) < 0.005, (turn, length)
    del y
    graphs = backend.COMPILED[before:]
    assert len(graphs) == 6
    assert sorted(held_bytes(graph) > 0 for graph in graphs) == [False] * 4 + [True] * 2
    torch._dynamo.reset()


def test_a_backward_that_waits_while_its_graph_rests_gives_the_same_gradients(monkeypatch) -> None:
    monkeypatch.setattr(compiled_module, "WARM_GRAPHS", 1)
    torch._dynamo.reset()
    torch.manual_seed(0)
    raw, x = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 16)), torch.randn(4, 16)
    model = torch.compile(raw, backend=backend.ane, dynamic=False, options={"device": "twin"})
    model(x).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in raw.parameters()]
    raw.zero_grad()
    loss = model(x).square().mean()
    model(torch.randn(5, 16))
    loss.backward()
    assert all(torch.equal(ours.grad, theirs) for ours, theirs in zip(raw.parameters(), expected, strict=True))
    torch._dynamo.reset()


def test_a_graph_goes_with_its_model() -> None:
    torch._dynamo.reset()
    before = len(backend.COMPILED)
    for width in (16, 32):
        torch.compile(nn.Linear(16, width), backend=backend.ane, options={"device": "twin"})(torch.randn(2, 16))
    torch._dynamo.reset()
    gc.collect()
    assert len(backend.COMPILED[before:]) <= 1


def test_a_listener_is_told_of_each_graph_and_of_no_other_ones():
    outer, inner, count = [], [], len(backend.COMPILED)
    first, second = (torch.compile(nn.Linear(4, out), backend="ane", options={"device": "twin"}) for out in (4, 6))
    with told(outer.append):
        first(torch.ones(1, 4))
        with told(inner.append, keeps=False):
            second(torch.ones(1, 4))
    torch.compile(nn.Linear(4, 5), backend="ane", options={"device": "twin"})(torch.ones(1, 4))
    assert len(outer) == 2 and outer[1:] == inner and outer[0].plans["forward"].programs
    assert len(backend.COMPILED) == count + 2
