"""A cache that a graph writes a row of: what it and the results are, what is staged, and that no write of another is missed."""

import pytest
import torch
from capture_helpers import compile_for_twin
from torch import nn

from torchane.capture.compiled import COMPILED
from torchane.capture.host_graph import written_in_place
from torchane.runtime import run
from torchane.runtime.promise import only_torch_writes

pytestmark = pytest.mark.filterwarnings("ignore::torchane.errors.TorchaneWarning")  # an index_copy is the host's

ROWS, SIZE = 32, 64


class Cached(nn.Module):
    """Attention of one token over a cache of keys, which it writes; its weights want no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, SIZE)
        self.first, self.q, self.k, self.out = (nn.Linear(SIZE, SIZE, bias=False) for _ in range(4))
        self.requires_grad_(False)

    def forward(self, token: torch.Tensor, at: torch.Tensor, cache: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        x = self.first(self.embed(token))
        cache.index_copy_(1, at, self.k(x))
        return self.out(torch.softmax(self.q(x) @ cache.transpose(1, 2), dim=-1) @ cache) * factor


@pytest.fixture
def staged(monkeypatch):
    """For each time that rows were staged alone: how many numbers."""
    found = []
    real = run.write_rows
    monkeypatch.setattr(run, "write_rows", lambda buffer, rows, *others: found.append(rows.size) or real(buffer, rows, *others))
    return found


@pytest.fixture
def model():
    torch._dynamo.reset()
    torch.manual_seed(0)
    return Cached()


def step(call, i: int, cache: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    with torch.no_grad():
        return call(torch.tensor([[i % 10]]), torch.tensor([i]), cache, torch.tensor([factor]))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).norm() < 3e-3 * theirs.norm())


def test_products_of_frozen_weights_stay_in_programs_where_a_cache_is_written(model):
    step(compile_for_twin(model), 0, torch.randn(1, ROWS, SIZE))
    rows = {row.name: row.place for row in COMPILED[-1].rows if row.op in ("aten.mm.default", "aten.bmm.default")}
    assert len(rows) == 6 and set(rows.values()) == {"program"}


def test_results_and_cache_are_eagers_and_one_row_is_staged(model, staged):
    ours = torch.randn(1, ROWS, SIZE, generator=torch.Generator().manual_seed(1))
    theirs, call = ours.clone(), compile_for_twin(model)
    with only_torch_writes():
        for i in range(5):
            assert close(step(call, i, ours), step(model, i, theirs)) and close(ours, theirs)
    assert staged == [SIZE] * 4


def test_without_a_promise_all_is_staged_and_a_write_without_a_trace_is_seen(model, staged):
    ours = torch.randn(1, ROWS, SIZE)
    theirs, call = ours.clone(), compile_for_twin(model)
    for i in range(3):
        assert close(step(call, i, ours), step(model, i, theirs))
        for cache in (ours, theirs):
            cache.numpy()[0, 20 + i] = 3
    assert staged == []


def another_row(cache: torch.Tensor) -> torch.Tensor:
    cache[0, 20] = 3
    return cache


def another_tensor(cache: torch.Tensor) -> torch.Tensor:
    return torch.randn(1, ROWS, SIZE, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("change", [another_row, another_tensor])
def test_what_torch_writes_between_two_calls_is_seen(model, staged, change):
    ours = torch.randn(1, ROWS, SIZE)
    theirs, call = ours.clone(), compile_for_twin(model)
    with only_torch_writes():
        for i in range(3):
            assert close(step(call, i, ours), step(model, i, theirs))
            ours, theirs = change(ours), change(theirs)
    assert staged == []


def test_under_the_next_promise_all_is_staged_again(model, staged):
    cache, call = torch.randn(1, ROWS, SIZE), compile_for_twin(model)
    for i in range(3):
        with only_torch_writes():
            step(call, i, cache)
    assert staged == []


def test_a_promise_that_has_held_all_the_while_is_believed_again(model, staged):
    ours, held = torch.randn(1, ROWS, SIZE), object()
    theirs, call = ours.clone(), compile_for_twin(model)
    for i in range(3):
        with only_torch_writes(held):
            assert close(step(call, i, ours), step(model, i, theirs)) and close(ours, theirs)
    assert staged == [SIZE] * 2


def test_nothing_is_believed_after_a_call_that_pytorch_computed(model, staged):
    """Its results were beyond fp16, and it wrote a row of its own over the programs'."""
    ours = torch.randn(1, ROWS, SIZE)
    theirs, call = ours.clone(), compile_for_twin(model)
    with only_torch_writes():
        for i in range(2):
            assert close(step(call, i, ours), step(model, i, theirs))
        assert torch.allclose(step(call, 2, ours, 1e7), step(model, 2, theirs, 1e7), rtol=1e-3, atol=1)
        assert staged == [SIZE] * 2
        for i in range(3, 5):
            assert close(step(call, i, ours), step(model, i, theirs))
    assert staged == [SIZE] * 3


def test_a_frozen_constant_that_torch_writes_is_seen_under_a_promise(model):
    cache, call = torch.randn(1, ROWS, SIZE), compile_for_twin(model, frozen="fp16")
    theirs = cache.clone()
    with only_torch_writes():
        for i in range(6):
            assert close(step(call, i, cache), step(model, i, theirs))
            if i > 3:
                with torch.no_grad():
                    model.k.weight.mul_(-1)


def test_the_note_of_rows_ends_with_the_next_write(model):
    cache = torch.randn(1, ROWS, SIZE)
    step(compile_for_twin(model), 4, cache)
    assert written_in_place(cache) is None  # AOTAutograd's copy onto itself is counted as a write
