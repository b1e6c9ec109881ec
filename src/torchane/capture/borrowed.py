"""A tensor's memory as NumPy sees it."""

import numpy as np
import torch


#: Of these an array is a view.
AS_THEY_LIE = {torch.float32: np.dtype(np.float32), torch.float16: np.dtype(np.float16), torch.bool: np.dtype(np.bool_)}


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """A view of a tensor of AS_THEY_LIE."""
    return np.asarray(_Borrowed(tensor.detach()))


class _Borrowed:
    """A tensor's memory for NumPy. `Tensor.numpy()` would forbid for ever to resize the storage, as sharded training does with
    parameters between two layers."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor
        size = tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(tensor.shape),
            "typestr": AS_THEY_LIE[tensor.dtype].str,
            "strides": tuple(size * stride for stride in tensor.stride()),
            "data": (tensor.data_ptr(), False),
        }
