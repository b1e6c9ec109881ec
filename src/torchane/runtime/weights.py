"""Surfaces of parameters: one for each, as long as the model lives, and whose numbers are in it.

    a forward      stages every weight that it reads           version: the number of that run
    its backward   reads what the forward staged, where the version is still the forward's (`Copy.is_kept`), and stages the rest
PyTorch changes parameters in ways that leave no trace (fused optimizers, `.data`, NumPy views): the next forward stages all anew. A backward
whose surfaces another run has filled since stages again, from the tensors that autograd saved. `read` gives a surface to the run whose
numbers it holds, and to no other.
"""

import itertools
import threading

from torchane.mil.types import FP16, TensorType
from torchane.runtime.device import Buffer, Device
from torchane.runtime.range_control import Placed
from torchane.runtime.surfaces import Held


class StaleWeightError(AssertionError):
    """A program was about to read numbers that another run staged: an error of torchane's."""


class Weights:
    """Of one compiled graph, forward and backward. lock: held by a run from its first step to its last, since runs share the surfaces."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.held: dict[str, Held] = {}
        self._versions = itertools.count(1)

    def new_version(self) -> int:
        """The number of a run that stages."""
        return next(self._versions)

    def holds(self, name: str, version: int) -> bool:
        """Whether a weight's surface still holds what that run staged."""
        held = self.held.get(name)
        return held is not None and held.version == version

    def surface(self, name: str, shape: tuple[int, ...], device: Device) -> Buffer:
        """For staging: whose numbers it holds is nobody's until `staged` says so."""
        held = self.held.pop(name, None)
        return device.allocate(TensorType(FP16, shape)) if held is None else held.buffer

    def staged(self, name: str, buffer: Buffer, version: int, lying: Placed) -> None:
        self.held[name] = Held(buffer, version, lying)

    def read(self, name: str, version: int) -> Held:
        """Raises StaleWeightError unless it holds what that run staged."""
        held = self.held.get(name)
        if held is None or held.version != version:
            there = "nothing" if held is None else f"what run {held.version} staged"
            raise StaleWeightError(f"{name}: run {version} is about to read it, and its surface holds {there}.")
        return held

    def forget(self) -> None:
        """Frees the surfaces. A backward that waits for its turn stages again."""
        self.held = {}
