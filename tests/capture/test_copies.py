"""A compiled model and its copies, by deepcopy, pickle and torch.save: what holds for torch's own backends."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from capture_helpers import compile_for_twin, distance
from torch import nn

from torchane.capture import backend
from torchane.errors import TorchaneWarning

X = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * 2


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved], ids=["deepcopy", "pickle", "save"])


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@COPIES
def test_a_copy_of_a_compiled_model_runs_programs_on_weights_of_its_own(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = Small()
    compiled = compile_for_twin(model)
    compiled(X).sum().backward()
    model.zero_grad()
    other = copied(compiled)
    before = compiled(X)
    assert torch.equal(other(X), before)
    assert 0 < distance(before, model(X)) < 4 * 2**-11  # fp16's roundings show that programs ran
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    other(X).sum().backward()
    assert distance(other(X), other._orig_mod(X)) < 4 * 2**-11 and torch.equal(compiled(X), before)
    assert all(parameter.grad is not None for parameter in other.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@COPIES
def test_a_copy_of_a_model_compiled_in_place_is_the_plain_model_until_it_is_compiled(copied: Callable[[nn.Module], nn.Module]) -> None:
    """As with any backend: torch leaves the compiled call out of what it copies."""
    model, plain = Small(), Small()
    plain.load_state_dict(model.state_dict())
    model.compile(backend=backend.ane, options={"device": "twin"})
    assert 0 < distance(model(X), plain(X)) < 4 * 2**-11
    other = copied(model)
    assert torch.equal(other(X), plain(X))
    other.compile(backend=backend.ane, options={"device": "twin"})
    assert torch.equal(other(X), model(X))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_state_dict_goes_to_the_plain_model_and_back(in_place: bool) -> None:
    """In place under the model's own names; a compiled object's names begin with torch's _orig_mod."""
    model, plain = Small(), Small()
    compiled = model if in_place else compile_for_twin(model)
    if in_place:
        model.compile(backend=backend.ane, options={"device": "twin"})
    compiled(X).sum().backward()
    file = io.BytesIO()
    torch.save(compiled.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    plain.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in state.items()})
    assert all(name.startswith("_orig_mod.") != in_place for name in state)
    assert distance(compiled(X), plain(X)) < 4 * 2**-11
    with torch.no_grad():
        plain.layers[0].weight.mul_(0.5)
    model.load_state_dict(plain.state_dict())
    assert distance(compiled(X), plain(X)) < 4 * 2**-11


def test_torch_compiles_its_own_containers_by_torch_compile_alone() -> None:
    plain = nn.Sequential(nn.Linear(32, 32), nn.GELU())
    in_place = copy.deepcopy(plain)
    with pytest.warns(TorchaneWarning, match="compiles nothing"):
        in_place.compile(backend=backend.ane, options={"device": "twin"})
    assert torch.equal(in_place(X), plain(X))
    assert 0 < distance(compile_for_twin(plain)(X), plain(X)) < 4 * 2**-11
