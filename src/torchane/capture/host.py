"""Torch tensors for the executor, which knows only arrays."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import fx

from torchane.capture.sources import place_of
from torchane.native import pages


class TorchHost:
    """Reads and makes CPU tensors of one graph's values. `memory` is where large ones lie, gradients above all: a step finds
    the memory of the last one. inputs: the caller's names of placeholders."""

    def __init__(self, graph: fx.Graph, memory: pages.Reused, inputs: Mapping[str, str] = MappingProxyType({})):
        #: What the graph promised.
        self.dtypes = {node.name: node.meta["val"].dtype for node in graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)}
        self.memory = memory
        self._inputs = inputs
        self._places = {node.name: place_of(node) for node in graph.nodes}

    def array(self, value: torch.Tensor) -> np.ndarray:
        """float32 or float16 values; a view unless the dtype must change. True is 1."""
        value = value.detach()
        if value.dtype not in (torch.float32, torch.float16):
            value = value.to(torch.float32)
        return value.numpy()

    def empty(self, name: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, np.ndarray]:
        array = self.memory.empty(shape)
        return torch.from_numpy(array), array

    def finish(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.dtypes[name])

    def wrap(self, view: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(view)

    def place(self, name: str) -> str:
        return self._places.get(name, "")

    def input(self, name: str) -> str:
        return self._inputs.get(name, "")

    def address(self, value: torch.Tensor) -> int:
        return value.data_ptr()
