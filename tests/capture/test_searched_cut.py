"""The cut that a named chip gets trains as the cut by layers does, and is priced below it."""

import copy

import pytest
import torch
from capture_helpers import distance, gradients
from torch import nn

from torchane import chips
from torchane.capture import backend
from torchane.capture.plans import Captured, compile_step
from torchane.mil.text import parse
from torchane.models.build import build_model
from torchane.models.presets import PRESETS, preset
from torchane.plan import pricing_for
from torchane.plan.partition import by_layer
from torchane.plan.step import price_step

#: Relative norm of a gradient's difference: one fp16 rounding of values that passed between programs, and of their neighbours.
BAR = 2e-3


class Stack(nn.Module):
    """Four small layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32)) for _ in range(4))
        self.head = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


class _Loss(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(tokens).flatten(0, 1), tokens.flatten())


def trained(model: nn.Module, x: torch.Tensor, chip: str, **options) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of one step, and its dispatches."""
    torch._dynamo.reset()
    model = copy.deepcopy(model)
    found = torch.compile(model, backend=backend.ane, options={"device": "twin", "chip": chip, **options})(x)
    (found if found.ndim == 0 else found.square().mean()).backward()
    return gradients(model), sum(len(plan.dispatches) for plan in backend.COMPILED[-1].plans.values())


def test_small_layers_share_programs_and_have_the_gradients_of_programs_of_their_own() -> None:
    torch.manual_seed(0)
    model, x = Stack(), torch.randn(32, 32)
    ours, dispatches = trained(model, x, "m4")
    theirs, dispatches_by_layer = trained(model, x, "m4", partition=by_layer)
    assert dispatches < dispatches_by_layer
    assert max(distance(ours[name], theirs[name]) for name in theirs) < BAR


def test_without_a_chip_each_layer_has_a_program() -> None:
    torch.manual_seed(0)
    model, x = Stack(), torch.randn(32, 32)
    assert trained(model, x, "portable")[1] == trained(model, x, "portable", partition=by_layer)[1]


def test_an_unknown_chip_is_named_with_the_nearest() -> None:
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=r"no chip is called 'm4maxx' \(did you mean m4max\?\)"):
        trained(Stack(), torch.randn(4, 32), "m4maxx")
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.parametrize("name", ["m1", "m4", "m5"])
def test_a_step_of_stories110m_has_the_gradients_of_the_cut_by_layers(name) -> None:
    torch.manual_seed(0)
    model = _Loss(build_model(preset("stories110m").config))
    tokens = torch.randint(0, 32000, (1, 64))
    ours, dispatches = trained(model, tokens, name)
    theirs, dispatches_by_layer = trained(model, tokens, name, partition=by_layer)
    assert dispatches < dispatches_by_layer
    assert max(distance(ours[key], theirs[key]) for key in theirs) < BAR


def captured(name: str, batch_size: int, seq_len: int, chip: str, partition=None) -> Captured:
    torch._dynamo.reset()
    options = {"chip": chip, "ranges": "on", "partition": partition}
    return compile_step(lambda: build_model(preset(name).config), batch_size=batch_size, seq_len=seq_len, options=options)


@pytest.mark.long
@pytest.mark.parametrize("name", ["m1", "m4", "m5max"])
def test_the_step_is_priced_below_that_of_the_cut_by_layers(name) -> None:
    ours, theirs = (price_step(captured("tiny", 1, 128, name, one).outline.graphs, pricing_for(name), tokens=128) for one in (None, by_layer))
    assert ours.predicted_ms < 0.9 * theirs.predicted_ms
    assert ours.dispatches_per_step < theirs.dispatches_per_step


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_no_preset_needs_a_hundred_programs_and_none_is_deeper_than_a_compiler_takes(name) -> None:
    plans = captured(name, 1, 64, "m4").plans
    texts = {spec.text for plan in plans for spec in plan.programs}
    assert len(texts) < chips.load("m4").limit("loaded_programs")
    found = [finding for text in texts for finding in chips.warnings(parse(text, "main"), chips.load("m4"))]
    assert [str(finding) for finding in found if finding.rule == "depth_at_most"] == []
