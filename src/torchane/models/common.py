"""What the decoders here have in common: a cache for decoding, a check of the positions, weights drawn once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from torchane.errors import UsageError
from torchane.models.config import Config
from torchane.native import pages


class KeyValueCache:
    """Keys and values of the positions already seen, for decoding one token at a time without gradients."""

    def __init__(self, config: Config, batch_size: int = 1) -> None:
        shape = (batch_size, config.num_key_value_heads, config.max_position_embeddings, config.head_dim)
        self.keys = [torch.zeros(shape) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros(shape) for _ in range(config.num_hidden_layers)]
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v (B, H, S, D) of the new positions -> those of all positions so far."""
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


def require_positions(positions: int, tokens: Tensor, cache: KeyValueCache | None) -> None:
    """Raises UsageError where tokens (B, S), after those of the cache, reach beyond the model's positions."""
    length = tokens.shape[1] + (0 if cache is None else cache.length)
    if length > positions:
        raise UsageError(
            f"The model was given {length} tokens and its max_position_embeddings is {positions}. "
            "Pass fewer, or build it with more positions."
        )


@contextmanager
def undrawn_weights() -> Iterator[None]:
    """torch's own layers draw no weights and leave its generator alone: `initialize` draws all of them, and to draw 600
    million numbers twice takes seconds. Weights lie in large pages, which the kernel hands out sooner."""
    drawn = {kind: kind.reset_parameters for kind in (nn.Linear, nn.Embedding)}
    try:
        for kind in drawn:
            kind.reset_parameters = _take_large_pages  # type: ignore[method-assign]
        yield
    finally:
        for kind, draw in drawn.items():
            kind.reset_parameters = draw  # type: ignore[method-assign]


def _take_large_pages(module: nn.Linear | nn.Embedding) -> None:
    if module.weight.is_cpu:  # under torch.device("meta") there is no memory
        module.weight = nn.Parameter(torch.from_numpy(pages.empty(tuple(module.weight.shape))))
