"""Torch tensors for the executor, which knows only arrays."""

import math

import numpy as np
import torch
from torch import fx

from torchane.capture.sources import place_of

#: From this size on NumPy asks Linux for pages of 2 MiB, which torch does not: fresh memory is had with fewer faults.
LARGE_BYTES = 4 << 20


def empty_floats(shape: tuple[int, ...]) -> torch.Tensor:
    """A new float32 tensor, not filled."""
    if math.prod(shape) * 4 < LARGE_BYTES:
        return torch.empty(shape, dtype=torch.float32)
    return torch.from_numpy(np.empty(shape, np.float32))


class TorchHost:
    """Reads and makes CPU tensors of one graph's values."""

    def __init__(self, graph: fx.Graph):
        #: What the graph promised.
        self.dtypes = {node.name: node.meta["val"].dtype for node in graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)}
        self._places = {node.name: place_of(node) for node in graph.nodes}

    def array(self, value: torch.Tensor) -> np.ndarray:
        """float32 or float16 values; a view unless the dtype must change. True is 1."""
        value = value.detach()
        if value.dtype not in (torch.float32, torch.float16):
            value = value.to(torch.float32)
        return value.numpy()

    def empty(self, name: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, np.ndarray]:
        tensor = empty_floats(shape)
        return tensor, tensor.numpy()

    def finish(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.dtypes[name])

    def wrap(self, view: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(view)

    def place(self, name: str) -> str:
        return self._places.get(name, "")

    def address(self, value: torch.Tensor) -> int:
        return value.data_ptr()
