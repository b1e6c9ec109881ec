"""Numbers that fp16 does not hold, found where they come in, leave and stay.

An infinity or NaN that a program is given spreads to other samples, through sums and products with constant zeros; a number above 65504
becomes one. Of numbers that are all below 2^-20 it keeps few digits or none. So a forward looks at what is staged before a program reads it, and
at what leaves; a backward at what is faint where it is staged. What else a backward computes is looked at by its numerics policy (numerics.py).
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from torchane import native
from torchane.abi.numbers import FAINT, FP16_MAX
from torchane.plan import Copy, Plan, Stage
from torchane.runtime.device import Buffer
from torchane.runtime.host import Host

COMES_THROUGH = (
    "what comes of it is infinite or NaN, in other samples too. Scale inputs or weights down (a norm that comes first in the model is "
    "float32's), or look for the layer with torchane.audit."
)
LOSES_DIGITS = "digits are lost, and what comes of it may be 0. Scale inputs or weights up, or look for the layer with torchane.audit."

#: Whether a value that came out of programs as zeros throughout, by its name, is to be looked at.
Doubts = Callable[[str], bool]


def no_doubts(name: str) -> bool:
    """Zeros are believed."""
    return False


class NotInFp16(Exception):
    """A run met numbers that programs have no right result for: value names them, the text says what they are.

    is_zero: they came out of programs as zeros throughout, which may be right. is_small: they are too small, or zero, and not too large.
    """

    def __init__(self, value: str, text: str, is_zero: bool = False, is_small: bool = False):
        super().__init__(text)
        self.value = value
        self.is_zero = is_zero
        self.is_small = is_small or is_zero


class Running(Protocol):
    """What is asked of the executor."""

    plan: Plan
    host: Host
    said: set[str]
    only_added: frozenset[str]

    @property
    def minds_losses(self) -> bool: ...

    def named(self, value: str) -> str: ...

    def say(self, found: NotInFp16, what: str) -> None: ...


class RangeLook:
    """Of one call. is_beyond: as in numerics.Call. strict: raises what it finds; else a forward warns of it once. looks: at weights and at
    what is kept, too. doubts: about zeros."""

    def __init__(
        self, executor: Running, values: Mapping[str, Any], is_beyond: Callable[[str, float], bool], strict: bool, looks: bool = False,
        doubts: Doubts = no_doubts,
    ):  # fmt: skip
        self.executor = executor
        self.values = values
        self.is_beyond = is_beyond
        self.strict = strict
        self.looks = looks
        self.doubts = doubts

    def came(self, copies: Sequence[Copy], surfaces: Mapping[str, Buffer], known: Mapping[str, tuple[float, int]] = MappingProxyType({})) -> dict[str, float]:
        """Values that were staged, before a program reads them. Weights are looked at where it `looks`, or where something is wrong with
        what leaves. known: what was staged in part, the largest magnitude of all of it and how many are not finite. Gives the largest of what it looked through."""
        plan = self.executor.plan
        seen: dict[str, float] = {}
        if plan.is_backward and not self.strict:
            return seen
        for copy in copies:
            if (copy.is_weight and not self.looks) or copy.value in plan.gradients:
                continue
            largest, missing = known.get(copy.value) or native.scan(surfaces[copy.value].look())[:2]
            if copy.value not in known:
                seen[copy.value] = largest
            is_beyond = not plan.is_backward and bool(missing or self.is_beyond(copy.value, largest))
            is_faint = largest < FAINT and self.executor.minds_losses and copy.value not in self.executor.only_added
            if is_beyond or is_faint:
                self._found(self._unfit(copy, is_faint=not is_beyond), COMES_THROUGH if is_beyond else LOSES_DIGITS)
        return seen

    def constant(self, copy: Copy, source: np.ndarray) -> None:
        """A frozen weight that programs are to hold: looked at where its numbers are new, too."""
        plan = self.executor.plan
        if source.size == 0 or (plan.is_backward and not self.strict):
            return
        largest = max(float(source.max()), -float(source.min()))
        is_beyond = not plan.is_backward and not largest <= FP16_MAX
        is_faint = largest < FAINT and self.executor.minds_losses and copy.value not in self.executor.only_added
        if is_beyond or is_faint:
            self._found(self._unfit(copy, is_faint=not is_beyond), COMES_THROUGH if is_beyond else LOSES_DIGITS)

    def left(self, name: str, largest: float, missing: int, is_whole: bool = True) -> None:
        """A value leaves, or is kept: its largest stored number, and how many are infinite or NaN. is_whole: not one part of several."""
        if missing:
            copies = (copy for step in self.executor.plan.steps if isinstance(step, Stage) for copy in step.copies)
            came = (self._unfit(copy) for copy in copies if copy.value in self.values)
            cause = next((found for found in came if found is not None), None)
            text = (
                f"{missing:,} values of {self.executor.named(name)} are infinite or NaN, and nothing that came in is: an activation left "
                "fp16's range (65504), in which programs compute, or the model makes infinities of its own"
            )
            self._found(cause or NotInFp16(name, text), COMES_THROUGH)
        elif is_whole and largest < FAINT and self.executor.minds_losses and (largest > 0 or self.doubts(name)):
            small = f"holds no number above {largest:.2g}" if largest else "is 0 throughout"
            text = f"{self.executor.named(name)} {small} in fp16, which has few digits or none below {FAINT:.2g}"
            self._found(NotInFp16(name, text, is_zero=largest == 0, is_small=True), LOSES_DIGITS)

    def kept(self, surfaces: Mapping[str, Buffer]) -> None:
        """What is saved for a backward."""
        plan = self.executor.plan
        made = {name for step in plan.dispatches for name in step.outputs} if self.looks else set()
        for name in plan.kept_names if self.looks else ():
            largest, missing, _, _ = native.scan(surfaces[name].look())
            self.left(name, largest, missing, is_whole=name in made)

    def _found(self, found: NotInFp16 | None, what: str) -> None:
        if found is not None and self.strict:
            raise found
        if found is not None and not self.executor.said:
            self.executor.say(found, what)

    def _unfit(self, copy: Copy, is_faint: bool = False) -> NotInFp16 | None:
        """What in a value that was staged, or is a weight, fp16 does not hold. is_faint: what was staged is below 2^-20 throughout."""
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
        if is_faint and largest > 0:
            return NotInFp16(copy.value, f"{name} holds no number above {largest:.2g}, and fp16 has few digits or none below {FAINT:.2g}", is_small=True)
        return None

    def _given(self, value: str) -> str:
        """What a program is given, for people."""
        name = self.executor.host.input(value)
        return f"The input {name}" if name else f"What PyTorch computed as {self.executor.named(value)}"
