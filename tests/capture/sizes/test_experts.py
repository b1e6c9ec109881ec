"""Mixtures of experts train for 300 steps, each beside eager with the same weights: how many tokens an expert gets varies with the data.

A router chooses by comparing: where the second and the third expert of a token lie within a rounding of fp16, it goes to another than in float32, and
loss and gradients of that step differ by more (docs/limits.md). Every step that does must have such a token, and they are few.
"""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from torchane.capture import backend

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

STEPS, VOCABULARY, TOKENS = 300, 64, (4, 48)
#: Of a step: its loss, and its gradients together.
LOSS_BAR, GRADIENT_BAR = 0.001, 0.02
#: Of a router's largest number: eight roundings of fp16, for what two layers add up to.
TIE = 8 * 2**-11
#: Steps in which a token may have gone to another expert.
FEW = STEPS // 15


class Expert(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x))).to(x.dtype)


class Mixture(nn.Module):
    """x[rows] for each expert, as most code writes it."""

    def __init__(self, size: int = 32, count: int = 4) -> None:
        super().__init__()
        self.table, self.gate, self.head = nn.Embedding(VOCABULARY, size), nn.Linear(size, count), nn.Linear(size, VOCABULARY)
        self.experts = nn.ModuleList(Expert(size) for _ in range(count))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens.flatten())
        shares, chosen = self.gate(x).softmax(-1).topk(2)
        made = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, rank = torch.where(chosen == number)
            made = made.index_add(0, rows, shares[rows, rank, None] * expert(x[rows]))
        return nn.functional.cross_entropy(self.head(x + made)[:-1], tokens.flatten()[1:])


class Mixtral(nn.Module):
    def __init__(self, experts: str) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        config = transformers.MixtralConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, use_cache=False, pad_token_id=0, experts_implementation=experts,
        )  # fmt: skip
        self.model = transformers.MixtralForCausalLM(config)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, labels=tokens).loss


def batch(step: int) -> torch.Tensor:
    """Sequences that count up from a random token by a random step, which a model can learn."""
    draw = np.random.default_rng(step)
    start, by = draw.integers(0, VOCABULARY, (TOKENS[0], 1)), draw.integers(1, 4, (TOKENS[0], 1))
    return torch.from_numpy((start + by * np.arange(TOKENS[1])) % VOCABULARY)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a plain mixture": Mixture,
    "Mixtral, an expert after the other": lambda: Mixtral("eager"),
    "Mixtral, grouped": lambda: Mixtral("grouped_mm"),
}


def gap(model: nn.Module, eager: nn.Module) -> float:
    pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), eager.parameters(), strict=True) if q.grad is not None]
    return float(sum((p - q).pow(2).sum() for p, q in pairs).sqrt() / sum(q.pow(2).sum() for _, q in pairs).sqrt())


def watch_routers(model: nn.Module) -> list[float]:
    """Is given, at each call of a router, how far apart some token's second and third expert are at least, of its largest number."""
    found: list[float] = []

    def look(router: nn.Module, given: object, made: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        numbers = (made[0] if isinstance(made, tuple) else made).detach()
        best = numbers.topk(3, -1)[0]
        found.append(float((best[:, 1] - best[:, 2]).min() / numbers.abs().max()))

    for name, module in model.named_modules():
        if name.endswith("gate"):
            module.register_forward_hook(look)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_300_steps(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, before = MODELS[name](), len(backend.COMPILED)
    eager = copy.deepcopy(model)
    apart = watch_routers(eager)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    model.compile(backend="ane")
    seen, half = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(STEPS):
            eager.load_state_dict(model.state_dict())
            apart.clear()
            losses = []
            for current in (eager, model):
                current.zero_grad()
                losses.append(current(batch(step)))
                losses[-1].backward()
            right, ours = (float(loss.detach()) for loss in losses)
            seen.append((right, abs(ours / right - 1), gap(model, eager), min(apart)))
            optimizer.step()
            half = len(backend.COMPILED) if step < STEPS // 2 else half
    right, off, gradients, nearest = np.array(seen).T
    compiled, late = len(backend.COMPILED) - before, len(backend.COMPILED) - half
    beyond = (off > LOSS_BAR) | (gradients > GRADIENT_BAR)
    print(f"{name}: {compiled} graphs, {late} in the second half; loss {right[0]:.2f} to {right[-1]:.2f}, off by {np.median(off):.5f}; gradients by {np.median(gradients):.4f}; "
          f"{beyond.sum()} steps beyond the bars, by {off.max():.4f} and {gradients.max():.4f} at most, of whose tokens one is {nearest[beyond].max(initial=0):.5f} from another expert; "
          f"{(nearest < TIE).sum()} steps have one within {TIE:.5f}")  # fmt: skip
    assert right[-1] < 0.5 * right[0]
    assert np.median(off) < LOSS_BAR / 2 and np.median(gradients) < GRADIENT_BAR / 2
    assert beyond.sum() <= FEW and nearest[beyond].max(initial=0) < TIE
    assert compiled <= 20 and late <= 4
