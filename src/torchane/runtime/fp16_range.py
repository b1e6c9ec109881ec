"""Numbers that fp16 does not hold, found where they come in, leave and stay.

An infinity or NaN that a program is given spreads to other samples, through sums and products with constant zeros; a number above 65504
becomes one. So a forward looks at what is staged before a program reads it, and at what leaves. A backward is looked at by its numerics
policy (numerics.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from torchane import native
from torchane.abi.numbers import FP16_MAX
from torchane.plan import Copy, Plan, Stage
from torchane.runtime.device import Buffer
from torchane.runtime.host import Host

COMES_THROUGH = (
    "what comes of it is infinite or NaN, in other samples too. Scale inputs or weights down (a norm that comes first in the model is "
    "float32's), or look for the layer with torchane.audit."
)


class NotInFp16(Exception):
    """A forward met numbers that programs have no right result for: value names them, the text says what they are."""

    def __init__(self, value: str, text: str):
        super().__init__(text)
        self.value = value


class Running(Protocol):
    """What is asked of the executor."""

    plan: Plan
    host: Host
    said: set[str]

    def named(self, value: str) -> str: ...

    def say(self, found: NotInFp16, what: str) -> None: ...


class RangeLook:
    """Of one call. strict: raises what it finds; else it is warned of once. is_beyond: as in numerics.Call."""

    def __init__(self, executor: Running, values: Mapping[str, Any], is_beyond: Callable[[str, float], bool], strict: bool):
        self.executor = executor
        self.values = values
        self.is_beyond = is_beyond
        self.strict = strict

    def came(self, copies: Sequence[Copy], surfaces: Mapping[str, Buffer]) -> None:
        """Values that were staged, before a program reads them. Weights are looked at where something is wrong with what leaves."""
        for copy in copies:
            if copy.is_weight or copy.value in self.executor.plan.gradients:
                continue
            largest, missing, _, _ = native.scan(surfaces[copy.value].look())
            if missing or self.is_beyond(copy.value, largest):
                self._found(self._unfit(copy))

    def left(self, name: str, count: int) -> None:
        """So many numbers of a value that leaves, or is kept, are infinite or NaN."""
        copies = (copy for step in self.executor.plan.steps if isinstance(step, Stage) for copy in step.copies)
        came = (self._unfit(copy) for copy in copies if copy.value in self.values)
        cause = next((found for found in came if found is not None), None)
        self._found(cause or NotInFp16(
            name,
            f"{count:,} values of {self.executor.named(name)} are infinite or NaN, and nothing that came in is: an activation left "
            "fp16's range (65504), in which programs compute, or the model makes infinities of its own",
        ))  # fmt: skip

    def _found(self, found: NotInFp16 | None) -> None:
        if found is not None and self.strict:
            raise found
        if found is not None and not self.executor.said:
            self.executor.say(found, COMES_THROUGH)

    def _unfit(self, copy: Copy) -> NotInFp16 | None:
        """What in a value that was staged, or is a weight, fp16 does not hold."""
        name = self._given(copy.value)
        source = self.executor.host.array(self.values[copy.value])
        if copy.is_mask:
            source = np.maximum(source, -FP16_MAX)  # what is below was replaced
        finite = np.isfinite(source)
        missing = source.size - np.count_nonzero(finite)
        largest = float(np.abs(source, where=finite, out=np.zeros(source.shape, np.float32)).max(initial=0))
        if missing:
            return NotInFp16(copy.value, f"{name} holds infinities or NaN, {missing:,} of its {source.size:,} values")
        if largest > FP16_MAX:
            return NotInFp16(copy.value, f"{name} holds {largest:,.6g}, above fp16's 65504, in which programs multiply")
        return None

    def _given(self, value: str) -> str:
        """What a program is given, for people."""
        name = self.executor.host.input(value)
        return f"The input {name}" if name else f"What PyTorch computed as {self.executor.named(value)}"
