"""Attention in tiles of queries: its numbers, and that no score of every pair is kept."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from capture_helpers import compile_for_twin, distance
from torch import nn

from torchane.capture import tiles
from torchane.capture.compiled import COMPILED
from torchane.plan import Plan

#: Roundings of fp16 through two products and a softmax, and back.
CLOSE = 3e-3
SIZE, HEADS = 64, 2


class Attention(nn.Module):
    def __init__(self, **options: object):
        super().__init__()
        self.qkv, self.out, self.options = nn.Linear(SIZE, 3 * SIZE, bias=False), nn.Linear(SIZE, SIZE, bias=False), options

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (part.view(batch, length, HEADS, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **self.options)
        return x + self.out(y.transpose(1, 2).reshape(batch, length, SIZE))


class Stack(nn.Module):
    def __init__(self, layers: int, **options: object):
        super().__init__()
        self.layers = nn.ModuleList(Attention(**options) for _ in range(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return x


@pytest.fixture(autouse=True)
def _compiled_anew() -> None:
    torch._dynamo.reset()


@pytest.fixture
def small_tiles(monkeypatch) -> None:
    """What is cut at 2,048 tokens is cut at 64 here."""
    monkeypatch.setattr(tiles, "LEAST_SCORES", 64 * 64)
    monkeypatch.setattr(tiles, "ROWS", 32)


def step(run: Callable[..., torch.Tensor], model: nn.Module, x: torch.Tensor, *rest: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    x = x.detach().requires_grad_()
    y = run(x, *rest)
    (y * torch.linspace(-1, 1, SIZE, dtype=y.dtype)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]


def worst(model: nn.Module, x: torch.Tensor, *rest: torch.Tensor, **options: object) -> float:
    """The largest distance of a result or a gradient from PyTorch's in float64."""
    double = copy.deepcopy(model).double()
    wanted = step(double, double, x.double(), *rest)
    found = step(compile_for_twin(model, **options), model, x, *rest)
    return max(distance(one.double(), other) for one, other in zip(found, wanted, strict=True))


def largest_port(plans: dict[str, Plan]) -> int:
    """Numbers in a surface of any program."""
    return max(math.prod(port.layout.shape) for plan in plans.values() for spec in plan.programs for port in (*spec.inputs, *spec.outputs))


def input_of(length: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, length, SIZE, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize(
    ("options", "length"),
    [({"is_causal": True}, 96), ({}, 80), pytest.param({"is_causal": True, "scale": 0.5}, 90, marks=pytest.mark.long)],
    ids=["causal", "all, the last tile smaller", "a scale of one's own"],
)
def test_results_and_gradients_are_those_of_the_whole(small_tiles, options, length) -> None:
    torch.manual_seed(0)
    assert worst(Stack(2, **options), input_of(length)) < CLOSE
    assert largest_port(COMPILED[-1].plans) < HEADS * 2 * length * length


@pytest.mark.long
@pytest.mark.parametrize("options", [{"chip": "m4", "ranges": "on"}, {"chip": "m5"}, {"recompute": "half"}], ids=str)
def test_other_chips_and_policies_have_them_too(small_tiles, options) -> None:
    torch.manual_seed(0)
    assert worst(Stack(2, is_causal=True), input_of(96), **options) < CLOSE
    assert largest_port(COMPILED[-1].plans) < HEADS * 2 * 96 * 96


def test_padding_in_a_mask_of_bools(small_tiles) -> None:
    torch.manual_seed(0)
    mask = torch.ones(2, 1, 1, 64, dtype=torch.bool)
    mask[1, ..., 50:] = False
    assert worst(Stack(1), input_of(64), mask) < CLOSE
    assert largest_port(COMPILED[-1].plans) < HEADS * 2 * 64 * 64


@pytest.mark.long
def test_a_mask_of_bools_for_each_pair(small_tiles) -> None:
    torch.manual_seed(0)
    mask = (torch.arange(64)[:, None] - torch.arange(64)).abs() < 20
    assert worst(Stack(1), input_of(64), mask.expand(2, 1, 64, 64)) < CLOSE


def test_a_mask_of_numbers_for_each_pair(small_tiles) -> None:
    """Distances (ALiBi), and what may not be seen as the smallest float32."""
    torch.manual_seed(0)
    distances = (torch.arange(64)[:, None] - torch.arange(64)).abs()
    numbers = (-0.1 * distances * torch.tensor([1.0, 0.5])[:, None, None]).masked_fill(distances > 40, torch.finfo(torch.float32).min)
    assert worst(Stack(1), input_of(64), numbers) < CLOSE
    assert largest_port(COMPILED[-1].plans) < HEADS * 2 * 64 * 64


@pytest.mark.long
def test_a_mask_of_numbers_that_learns(small_tiles) -> None:
    class Biased(Stack):
        def __init__(self) -> None:
            super().__init__(1)
            self.bias = nn.Parameter(torch.randn(2 * 64 - 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            places = torch.arange(64)[:, None] - torch.arange(64) + 63
            return super().forward(x, self.bias[places][None, None])

    torch.manual_seed(0)
    assert worst(Biased(), input_of(64)) < CLOSE


@pytest.mark.long
def test_heads_that_share_keys(small_tiles) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.kv = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, length, _ = x.shape
            q = self.q(x).view(batch, length, 2, -1).transpose(1, 2)
            k, v = (part.view(batch, length, 1, -1).transpose(1, 2) for part in self.kv(x).chunk(2, -1))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).reshape(batch, length, SIZE)

    torch.manual_seed(0)
    assert worst(Shared(), input_of(64)) < CLOSE
    assert largest_port(COMPILED[-1].plans) < HEADS * 2 * 64 * 64


@pytest.mark.parametrize(
    ("options", "length", "mask"),
    [({"dropout_p": 0.1}, 64, None), ({}, 32, None)],
    ids=["dropout", "few tokens"],
)
def test_what_is_not_worth_it_or_draws_is_not_touched(small_tiles, options, length, mask) -> None:
    seen = []

    def backend(gm: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        tiles.tile_attention(gm)
        seen.extend(node.target for node in gm.graph.nodes)
        return gm

    torch.compile(Attention(**options), backend=backend)(input_of(length), mask)
    assert F.scaled_dot_product_attention in seen and tiles.tiled_attention not in seen


def test_tiles_are_of_whole_vectors_and_few() -> None:
    assert [end - start for start, end in tiles._rows(2048)] == [256] * 8
    assert [end - start for start, end in tiles._rows(4096)] == [256] * 16
    assert [end - start for start, end in tiles._rows(2100)] == [256] * 8 + [52]
    assert len(list(tiles._rows(100_000))) <= tiles.MOST_TILES


@pytest.mark.long
@pytest.mark.parametrize("length", [2048, 4096])
def test_thousands_of_tokens_forward_and_backward(length) -> None:
    torch.manual_seed(0)
    assert worst(Stack(2, is_causal=True), input_of(length, batch=1)) < CLOSE
    assert largest_port(COMPILED[-1].plans) < length * length // 8
    programs = [held for held in COMPILED[-1].device._held]  # type: ignore[attr-defined]
    assert max(one.stats.scratch_bytes for one in programs) < 2 * HEADS * length * length  # fp16 scores of all pairs
