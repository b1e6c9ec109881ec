"""Torch tensors for the executor, which knows only arrays."""

import math

import numpy as np
import torch

#: From this size on NumPy asks Linux for pages of 2 MiB, which torch does not: fresh memory is had with fewer faults.
LARGE_BYTES = 4 << 20


def empty_floats(shape: tuple[int, ...]) -> torch.Tensor:
    """A new float32 tensor, not filled."""
    if math.prod(shape) * 4 < LARGE_BYTES:
        return torch.empty(shape, dtype=torch.float32)
    return torch.from_numpy(np.empty(shape, np.float32))


class TorchHost:
    """Reads and makes CPU tensors. `dtypes` says what dtype the graph promised for a value."""

    def __init__(self, dtypes: dict[str, torch.dtype]):
        self.dtypes = dtypes

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

    def address(self, value: torch.Tensor) -> int:
        return value.data_ptr()
