"""What the tests of the backend share beside fixtures."""

import torch
from torch import nn

from torchane.capture import backend

SMALL = dict(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip


def compile_for_twin(model: nn.Module, **options: object) -> nn.Module:
    return torch.compile(model, backend=backend.ane, dynamic=False, options={"device": "twin", **options})


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def tokens(batch: int = 2, length: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, SMALL["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    logits = model(x)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative norm of the difference."""
    return ((a - b).norm() / b.norm()).item()
