"""The model as the trainer calls it, and the plain case: a forward that remembers nothing.

engine.EngineModel   torch.compile(model, backend="ane"): forward and backward are engine programs
HostModel            PyTorch eager, or torch.compile with a backend of PyTorch's own
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from torchane.errors import RunFolderError
from torchane.runtime.weights import Weights


class CompiledModel(Protocol):
    """tokens (B, S), and where rows hold several texts their positions (B, S) -> logits (B, S, V) float32. What it remembers from step to step can be saved and put back."""

    device: str
    #: An optimizer of ours reads gradients where programs wrote them (optimizer.py).
    reads_surfaces: bool

    def __call__(self, tokens: Tensor, *positions: Tensor) -> Tensor: ...

    def state(self) -> dict[str, Any]: ...

    def weights(self) -> Sequence[Weights]:
        """Of the graphs that train: an optimizer may stage for them."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class HostModel:
    """A forward without memory."""

    def __init__(self, forward: Callable[..., Tensor], device: str = "host") -> None:
        self.device = device
        self.reads_surfaces = False
        self._forward = forward

    def __call__(self, tokens: Tensor, *positions: Tensor) -> Tensor:
        return self._forward(tokens, *positions)

    def state(self) -> dict[str, Any]:
        return {}

    def weights(self) -> Sequence[Weights]:
        return ()

    def restore(self, state: Mapping[str, Any]) -> None:
        if state:
            raise RunFolderError("The checkpoint was trained through engine programs; resume it on such a device.")
