"""Other partitioners give the same training, and not a line outside of them knows."""

import copy

import pytest
import torch
import transformers
from capture_helpers import distance, gradients
from partitioners import half_a_layer_a_program, sums_again, two_layers_a_program
from torch import nn

from torchane.capture import backend
from torchane.models import build, presets
from torchane.plan.partition import by_layer
from torchane.plan.step_graph import Role

BAR = 4e-3  # two fp16 roundings of a value that passes between programs, as of one that does not


class Residual(nn.Module):
    """A sum that two later layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        both = self.layers[0](x) * 1.0 + y
        for layer in self.layers[1:]:
            both = both + layer(both)
        return both.square().mean()


def gpt2() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    config = transformers.GPT2Config(vocab_size=97, n_positions=16, n_embd=32, n_layer=4, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    tokens = torch.randint(0, 97, (2, 16))
    return _Loss(transformers.GPT2LMHeadModel(config)), (tokens,)


class _Loss(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found = self.model(tokens)
        scores = getattr(found, "logits", found)
        return nn.functional.cross_entropy(scores.flatten(0, 1), tokens.flatten())


def tiny() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    model = build.build_model(presets.PRESETS["tiny"].config)
    return _Loss(model), (torch.randint(0, 100, (2, 32)),)


def residual() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return Residual(), (torch.randn(4, 16), torch.randn(4, 16))


def trained(model: nn.Module, inputs: tuple[torch.Tensor, ...], partition) -> tuple[dict[str, torch.Tensor], int]:
    torch._dynamo.reset()
    model = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend.ane, options={"device": "twin", "partition": partition})
    compiled(*inputs).backward()
    return gradients(model), sum(len(plan.dispatches) for plan in backend.COMPILED[-1].plans.values())


@pytest.mark.filterwarnings("ignore:.*runs? in PyTorch on the CPU:torchane.errors.TorchaneWarning")
@pytest.mark.parametrize("partition", [two_layers_a_program, half_a_layer_a_program, sums_again])
@pytest.mark.parametrize("make", [residual, pytest.param(gpt2, marks=pytest.mark.long), pytest.param(tiny, marks=pytest.mark.long)])
def test_another_cut_gives_the_same_gradients(make, partition) -> None:
    torch.manual_seed(0)
    model, inputs = make()
    ours, dispatches = trained(model, inputs, partition)
    todays, dispatches_today = trained(model, inputs, None)
    assert max(distance(ours[name], todays[name]) for name in todays) < BAR
    if partition is two_layers_a_program:
        assert dispatches < dispatches_today
    if partition is half_a_layer_a_program:
        assert dispatches > dispatches_today


def test_a_partitioner_that_loses_a_node_is_refused() -> None:
    def losing(graph, chip, cost):
        cut = two_layers_a_program(graph, chip, cost)
        return type(cut)(cut.groups[:-1], cut.stages, cut.sent_to_host)

    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="is in no program"):
        trained(*residual(), losing)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*runs? in PyTorch on the CPU:torchane.errors.TorchaneWarning")
@pytest.mark.parametrize(("chip", "machine"), [("m4", "m4"), ("portable", None)])
def test_a_partitioner_is_given_what_prices_programs_on_the_chip(chip, machine) -> None:
    priced = []

    def asking(graph, chip, cost):
        priced.append(cost and cost.name)
        return by_layer(graph, chip, cost)

    torch._dynamo.reset()
    model, inputs = residual()
    torch.compile(model, backend=backend.ane, options={"device": "twin", "partition": asking, "chip": chip})(*inputs)
    assert set(priced) == {machine}


def test_a_partitioner_sees_what_every_value_is_in_training() -> None:
    roles = {}

    def asking(graph, chip, cost):
        found = roles.setdefault("backward" if "forward" in roles else "forward", {})
        found.update({name: node.role for name, node in graph.nodes.items()})
        return by_layer(graph, chip, cost)

    torch._dynamo.reset()
    model, inputs = residual()
    torch.compile(model, backend=backend.ane, options={"device": "twin", "partition": asking})(*inputs).backward()
    assert {Role.TRAINED, Role.BATCH, Role.ACTIVATION} == set(roles["forward"].values())
    assert {Role.TRAINED, Role.SAVED, Role.TANGENT, Role.GRADIENT} <= set(roles["backward"].values())
