"""Range control end to end: random layers with weights and gradients across fp16's range, on the twin's engine arithmetic.

The oracle is PyTorch in float64 with the same weights. Scales are drawn so that plain loss scaling, which has one
power of two for all gradients of a backward pass, cannot hold every product in the engine's window.
"""

import copy
import warnings

import pytest
import torch
from torch import nn

from torchane.capture import backend
from torchane.errors import NumericsError, TorchaneWarning

SIZES = (32, 64, 96)


class RandomLayers(nn.Module):
    """Three blocks of linear maps: plain, gated (two maps multiplied) or residual; every weight has a scale of its own."""

    def __init__(self, seed: int):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)

        def pick(low: int, high: int) -> int:
            return int(torch.randint(low, high, (1,), generator=draw))

        width = self.inputs = SIZES[pick(0, 3)]
        self.kinds, blocks = [], []
        for _ in range(3):
            kind = ("plain", "gated", "residual")[pick(0, 3)]
            out = width if kind == "residual" else SIZES[pick(0, 3)]
            maps = [nn.Linear(width, out, bias=False) for _ in range(2 if kind == "gated" else 1)]
            for one in maps:
                scale = 2.0 ** pick(-24, 15)
                one.weight.data = scale * torch.randn(out, width, generator=draw) / width**0.5
            self.kinds.append(kind)
            blocks.append(nn.ModuleList(maps))
            width = out
        self.blocks = nn.ModuleList(blocks)
        self.x = 2.0 ** pick(-10, 8) * torch.randn(2, 32, self.inputs, generator=draw)
        self.gradient = 2.0 ** pick(-24, 15) * torch.randn(2, 32, width, generator=draw)

    def forward(self, x):
        for kind, maps in zip(self.kinds, self.blocks):
            y = maps[0](x)
            x = x + y if kind == "residual" else y * maps[1](x) if kind == "gated" else y
        return x


def errors(seed: int, ranges: str, arithmetic: str = "engine") -> list[float]:
    """The relative error of every weight's gradient."""
    torch.compiler.reset()
    ours = RandomLayers(seed)
    exact = copy.deepcopy(ours).double()
    compiled = torch.compile(ours, backend="ane", options={"device": "twin", "arithmetic": arithmetic, "ranges": ranges})
    try:
        compiled(ours.x).backward(ours.gradient)
    except NumericsError:
        return [float("inf")]
    exact(ours.x.double()).backward(ours.gradient.double())
    return [
        ((p.grad.double() - q.grad).norm() / q.grad.norm()).item() for p, q in zip(ours.parameters(), exact.parameters(), strict=True)
    ]


def test_a_few_random_layers_keep_every_gradient_within_one_percent():
    for seed in (0, 2, 3):
        assert max(errors(seed, "on")) < 0.01, seed  # and nothing was said, which would be an error


def without(seed: int) -> tuple[float, bool]:
    """The largest error without range control, and whether PyTorch had to compute in float32, which is said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", TorchaneWarning)
        largest = max(errors(seed, "off"))
    return largest, any("in float32" in str(one.message) for one in said)


def test_without_range_control_programs_do_not_hold_them_and_it_is_said():
    found = [without(seed) for seed in (0, 2, 3)]
    assert all(error < 0.01 for error, _ in found)
    assert any(is_float32 for _, is_float32 in found)


@pytest.mark.long
def test_ten_random_layers_keep_every_gradient_within_one_percent(evidence):
    plain = {seed: without(seed) for seed in range(10)}
    controlled = {seed: max(errors(seed, "on")) for seed in range(10)}
    evidence("largest relative error of a weight's gradient, range control", controlled)
    evidence("the same, plain loss scaling, and whether PyTorch had to compute in float32", plain)
    assert max(controlled.values()) < 0.01
    assert sum(error > 0.1 or is_float32 for error, is_float32 in plain.values()) >= 5


def test_exact_arithmetic_gives_the_same_gradients_with_and_without_where_nothing_is_lost():
    """A plain model at ordinary magnitudes: powers of two move no digit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 32, bias=False))
    x, found = torch.randn(2, 32, 64), []
    for ranges in ("off", "on"):
        torch.compiler.reset()
        model.zero_grad()
        compiled = torch.compile(model, backend="ane", options={"device": "twin", "ranges": ranges})
        compiled(x).backward(torch.ones(2, 32, 32))
        found.append([param.grad.clone() for param in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_layers_of_one_structure_share_a_program_and_have_ranges_of_their_own():
    torch.compiler.reset()
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64, bias=False)) for _ in range(3)))
    for index, layer in enumerate(model):
        layer[0].weight.data *= 2.0 ** (-9 * index)
    compiled = torch.compile(model, backend="ane", options={"device": "twin", "ranges": "on"})
    compiled(torch.randn(2, 32, 64)).sum().backward()
    graph = backend.COMPILED[-1]
    forward = graph.plans["forward"]
    assert len(forward.programs) < len(forward.dispatches) == 3
    results = [one.exponents["v0"] for one in graph.ranges.plans["forward"]]
    assert results[0] < results[1] < results[2]


def test_an_overflow_is_run_again_at_once_and_the_gradient_is_right():
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 32, bias=False))
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend="ane", options={"device": "twin", "arithmetic": "engine", "ranges": "on"})
    x = torch.randn(2, 32, 64)
    compiled(x).sum().backward()
    graph = backend.COMPILED[-1]
    before = graph.ranges.reruns
    for one in (model, plain):
        one.zero_grad()
        one[0].weight.data *= 2.0**18
    compiled(x).sum().backward()
    plain(x).sum().backward()
    assert graph.ranges.reruns > before
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() < 0.01 * theirs.grad.norm()


def test_saved_values_that_a_hook_moved_are_found_while_their_power_stands_and_refused_after():
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 32, bias=False))
    compiled = torch.compile(model, backend="ane", options={"device": "twin", "ranges": "on"})
    x = torch.randn(2, 32, 64)

    def step(factor: float) -> None:
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.clone(), lambda packed: packed.clone()):
            y = compiled(x * factor)
        y.sum().backward()

    step(1.0)
    before = model[1].weight.grad.clone()
    model.zero_grad()
    step(1.0)
    assert torch.equal(before, model[1].weight.grad)
    with pytest.raises(NumericsError, match="moved by a hook"):
        step(2.0**12)
