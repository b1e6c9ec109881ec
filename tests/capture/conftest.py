"""A small Llama and its compiled twin, for the tests of the backend."""

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from capture_helpers import SMALL, compile_for_twin
from torch import nn

from torchane.models.config import LlamaConfig
from torchane.models.llama import LlamaForCausalLM


def make_llama(**changes: int) -> nn.Module:
    """Equal models on every call; keyword arguments change the configuration."""
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes}))



@pytest.fixture
def fresh_llama() -> Iterator[Callable[..., nn.Module]]:
    """For tests that compile by themselves: nothing that others compiled is seen."""
    torch._dynamo.reset()
    yield make_llama
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def _shared() -> Iterator[SimpleNamespace]:
    torch._dynamo.reset()
    raw = make_llama()
    yield SimpleNamespace(
        raw=raw, model=compile_for_twin(raw), eager=copy.deepcopy(raw), start=copy.deepcopy(raw.state_dict())
    )
    torch._dynamo.reset()


@pytest.fixture
def llama(_shared: SimpleNamespace) -> SimpleNamespace:
    """model (compiled, over raw) and eager, an equal one of its own; compiled once, weights as at the start."""
    for model in (_shared.raw, _shared.eager):
        model.load_state_dict(_shared.start)
        model.zero_grad()
    return _shared
