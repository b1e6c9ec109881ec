"""Torch tensors for the executor, which knows only arrays."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import fx

from torchane import native
from torchane.capture.borrowed import AS_THEY_LIE, array_of
from torchane.capture.host_graph import written_in_place
from torchane.capture.sources import place_of
from torchane.native import pages
from torchane.runtime.rows import Written


class TorchHost:
    """Reads and makes CPU tensors of one graph's values. `memory` is where large ones lie, gradients above all: a step finds
    the memory of the last one. inputs: the caller's names of placeholders."""

    def __init__(self, graph: fx.Graph, memory: pages.Reused, inputs: Mapping[str, str] = MappingProxyType({})):
        values = {node.name: node.meta["val"] for node in graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)}
        #: What the graph promised.
        self.dtypes = {name: value.dtype for name, value in values.items()}
        self.strides = {name: value.stride() for name, value in values.items() if not value.is_contiguous() or 1 in value.shape}
        #: Of these, the axes as they lie in memory, and where each axis is among them.
        self._orders = {name: _order(strides) for name, strides in self.strides.items()}
        self.memory = memory
        self._inputs = inputs
        self._places = {node.name: place_of(node) for node in graph.nodes}

    def array(self, value: torch.Tensor) -> np.ndarray:
        """float32 or float16 values, or bools; a view unless the dtype must change."""
        value = value.detach()
        if value.dtype not in AS_THEY_LIE:
            # into memory that was there in the last step: to fault it in anew takes six times as long as to cast
            strides = value.stride() if _is_dense(value) else None
            wide = torch.from_numpy(self.memory.empty(tuple(value.shape)))
            value = (wide if strides is None else wide.as_strided(value.shape, strides)).copy_(value)
        return array_of(value)

    def empty(self, name: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, np.ndarray]:
        strides = self.strides.get(name)
        if strides is None:
            array = self.memory.empty(shape)
            return torch.from_numpy(array), array
        order, back = self._orders[name]
        array = self.memory.empty(tuple(shape[axis] for axis in order)).transpose(back)
        tensor = torch.from_numpy(array)
        return (tensor.as_strided(shape, strides) if _are_as_dense(tensor, strides) else tensor), array

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

    def identity(self, value: torch.Tensor) -> tuple[int, int] | None:
        return None if value.is_inference() else (value.data_ptr(), value._version)

    def written(self, value: torch.Tensor) -> Written | None:
        return written_in_place(value)


def _order(strides: tuple[int, ...]) -> tuple[list[int], list[int]]:
    order = sorted(range(len(strides)), key=lambda axis: -strides[axis])
    return order, [order.index(axis) for axis in range(len(strides))]


def _is_dense(tensor: torch.Tensor) -> bool:
    """Its numbers lie side by side, in whatever order of the axes."""
    return tensor.numel() > 0 and sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) == tensor.numel() - 1 and 0 not in tensor.stride()


def _are_as_dense(tensor: torch.Tensor, strides: tuple[int, ...]) -> bool:
    """These strides, which may differ where an axis has one entry, reach the same memory."""
    return all(size == 1 or ours == theirs for size, ours, theirs in zip(tensor.shape, tensor.stride(), strides, strict=True))


def largest_of(tensor: torch.Tensor) -> float:
    """The largest magnitude, NaN where there is one."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return 0.0
    if tensor.dtype is torch.float32 and tensor.is_contiguous():
        return native.largest(array_of(tensor))  # torch's threads would spin for milliseconds after it, beside ours
    low, high = torch.aminmax(tensor.detach())
    return max(abs(low.item()), abs(high.item())) if not (low.isnan() or high.isnan()) else float("nan")
