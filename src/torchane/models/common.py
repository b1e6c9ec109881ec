"""What the decoders here have in common: a cache for decoding, a check of the positions, weights drawn once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from torchane.errors import UsageError
from torchane.models.config import Config
from torchane.native import pages

#: What a cache has room for at first.
FIRST_POSITIONS = 64


class KeyValueCache:
    """Keys and values of the positions already seen, for decoding one token at a time without gradients.

    It grows with them: a model's 40,960 positions, were all of them held from the start, would take more than its weights.
    """

    def __init__(self, config: Config, batch_size: int = 1) -> None:
        shape = (batch_size, config.num_key_value_heads, FIRST_POSITIONS, config.head_dim)
        self.keys = [torch.zeros(shape) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros(shape) for _ in range(config.num_hidden_layers)]
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v (B, H, S, D) of the new positions -> those of all positions so far."""
        end = self.length + k.shape[2]
        if end > self.keys[layer].shape[2]:
            self.keys[layer], self.values[layer] = (_longer(held, 2 * end) for held in (self.keys[layer], self.values[layer]))
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


def _longer(held: Tensor, positions: int) -> Tensor:
    """held (B, H, S, D) with room for so many positions."""
    return torch.cat([held, held.new_zeros(*held.shape[:2], positions - held.shape[2], held.shape[3])], dim=2)


def several(queries: int) -> bool:
    """Whether there is more than one query, so that each must be kept from the keys after it.

    Written as a branch: where a size varies, Dynamo decides a branch while it traces, and hands a comparison, or `bool` of
    one, to scaled_dot_product_attention as a symbol, which it refuses.
    """
    if queries > 1:
        return True
    return False


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


def fetching(model: nn.Module) -> pages.Fetching:
    """Within it the memory of its weights is fetched from the last one on, while they are drawn from the first on."""
    real = [param for param in model.parameters() if type(param.data) is Tensor and param.is_cpu]  # a fake one has a type of its own
    return pages.Fetching([param.detach().numpy() for param in reversed(real)])


def _take_large_pages(module: nn.Linear | nn.Embedding) -> None:
    if module.weight.is_cpu:  # under torch.device("meta") there is no memory
        module.weight = nn.Parameter(torch.from_numpy(pages.empty(tuple(module.weight.shape))))
