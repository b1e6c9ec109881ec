"""Torch tensors for the executor, which knows only arrays."""

import numpy as np
import torch


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
        tensor = torch.empty(shape, dtype=torch.float32)
        return tensor, tensor.numpy()

    def finish(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.dtypes[name])

    def wrap(self, view: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(view)

    def address(self, value: torch.Tensor) -> int:
        return value.data_ptr()
