"""Caches of fixed length whose tensors are there before the first call.

    a token read by PyTorch, once ──► heads and sizes of every layer ──► StaticCache with tensors of zeros
transformers makes these tensors in a cache's first call, so that the first piece of a text would be compiled apart from the others; and it
marks them as being at a fixed address, so that the next text's cache would be compiled apart from this one's.
"""

import inspect
from typing import Any

import torch

from torchane.finetune.extras import require

_TENSORS = ("keys", "values", "cumulative_length")


class Caches:
    """Of a model that transformers loads."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._layers: list[tuple[torch.Tensor, torch.Tensor] | None] | None = None

    def growing(self) -> Any:
        return require("transformers").DynamicCache(config=self._model.config)

    def fixed(self, texts: int, positions: int) -> Any:
        """For so many texts at once, of so many positions each."""
        if self._layers is None:
            self._layers = self._look()
        cache = require("transformers").StaticCache(config=self._model.config, max_cache_len=positions)
        for layer, seen in zip(cache.layers, self._layers, strict=True):
            if seen is None:
                continue
            layer.lazy_initialization(*(one.expand(texts, *one.shape[1:]) for one in seen))
            for name in _TENSORS:
                if isinstance(getattr(layer, name, None), torch.Tensor):
                    setattr(layer, name, torch.zeros_like(getattr(layer, name)))  # without the mark
        return cache

    def _look(self) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
        """Keys and values of one token in each layer; None for a layer without."""
        grown = self.growing()
        takes = inspect.signature(self._model.forward).parameters
        self._model.forward(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True, **{"cache" if "cache" in takes else "past_key_values": grown})
        layers = ((getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in grown.layers)
        return [None if keys is None or values is None else (keys, values) for keys, values in layers]
