"""How the executor reads and makes the tensors of the caller's framework, which nothing here knows."""

from typing import Any, Protocol

import numpy as np

from torchane.runtime.rows import Written


class Host(Protocol):
    """Implemented by capture/host.py for PyTorch."""

    def array(self, value: Any) -> np.ndarray:
        """The values of a tensor as float32, float16 or bool (which counts as 0 and 1), a view where that is possible."""
        ...

    def empty(self, name: str, shape: tuple[int, ...]) -> tuple[Any, np.ndarray]:
        """A new tensor for the value `name`, and the float32 array to fill it through."""
        ...

    def finish(self, name: str, value: Any) -> Any:
        """The tensor from `empty` once it is filled, in the dtype that the graph promised."""
        ...

    def wrap(self, view: np.ndarray) -> Any:
        """A tensor that holds a lent surface."""
        ...

    def place(self, name: str) -> str:
        """Where in the user's code a value comes from, ` in model.layers.3, llama.py:72`; empty where that is unknown."""
        ...

    def input(self, name: str) -> str:
        """The caller's own name of an input; empty where the value is none, or its name is unknown."""
        ...

    def address(self, value: Any) -> int:
        """Where a tensor's memory begins."""
        ...

    def identity(self, value: Any) -> tuple[int, int] | None:
        """Where a tensor's memory begins, and how often the framework's ops have written it; None where they do not count."""
        ...

    def written(self, value: Any) -> Written | None:
        """The rows that the graph has just written into this tensor, where it has done so in place and nothing else since."""
        ...
