"""How numbers are kept in fp16's range while a plan runs: two policies, one interface.

    LossScaled        every gradient multiplied by one power of two, which is divided out where it leaves (loss_scale.py)
    RangeControlled   a power of two for every tensor, chosen from what was seen of it (range_control.py)
A policy belongs to one compiled graph, forward and backward. `begin` gives what one call of an executor asks at every step: by which
factor a value is staged and leaves, and how a program is run. Nobody else knows which policy it is.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from torchane import native
from torchane.abi.numbers import FAINT, FP16_MAX
from torchane.plan import Copy, Dispatch, Plan
from torchane.runtime.confirm import confirmed
from torchane.runtime.device import Buffer, Device, LoadedProgram
from torchane.runtime.loss_scale import OWN_TARGET, LossScale, Reading, require_finite
from torchane.runtime.observers import RunProgram
from torchane.runtime.range_control import GRADIENTS, DispatchRanges, Placed, RangeControl, placed_at
from torchane.runtime.ranged import dispatch_in_range, placed_for, staged_at
from torchane.runtime.surfaces import SurfacePool

Result = TypeVar("Result")


class Running(Protocol):
    """What a policy may know of the executor that runs a plan."""

    plan: Plan
    device: Device
    pool: SurfacePool
    unstaged: frozenset[str]

    def named(self, value: str) -> str:
        """A program's output, for people."""
        ...


class Call(Protocol):
    """One run of a plan. reading: what scaled gradients looked like. stores_as_is: a weight is staged unscaled at every step."""

    reading: Reading
    stores_as_is: bool

    def staged(self, copy: Copy, source: np.ndarray) -> float:
        """A host value is about to be staged: the factor to multiply it by."""
        ...

    def received(self, name: str, lying: Placed) -> None:
        """A surface is read as an earlier call filled it: one that it lent, or a weight's."""
        ...

    def moved(self, name: str, array: np.ndarray) -> None:
        """The same, after a hook has copied it elsewhere."""
        ...

    def is_beyond_fp16(self, name: str, largest: float) -> bool:
        """Whether a value whose largest stored magnitude this is, is in truth larger than 65504."""
        ...

    def run(self, step: Dispatch, loaded: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer], run: RunProgram) -> None:
        """Runs a program, once or more."""
        ...

    def leaving(self, name: str) -> float:
        """A value is about to leave its surface: the factor to multiply it by."""
        ...

    def left(self, name: str, read: tuple[float, int, int, int]) -> None:
        """It has left: its largest stored magnitude, and counts of what is not finite, of zeros, and of all."""
        ...

    def lying(self, name: str) -> Placed:
        """How a value lies in its surface."""
        ...

    def lend(self, name: str) -> Placed:
        """The same of a surface that leaves with its value: what a hook may move."""
        ...


class Numerics(Protocol):
    """A policy. loss_scale: its state, or what is reported where it plays no part. ranges: the memory of range control, or None."""

    loss_scale: LossScale
    ranges: RangeControl | None

    def begin(self, executor: Running, scale: float) -> Call:
        """One run of a plan."""
        ...

    def backward(
        self, largest: float, execute: Callable[[float], tuple[Result, Reading]], scale: LossScale | None = None, strict: bool = False
    ) -> Result:
        """Runs a backward whose incoming gradients are at most so large; as often as that takes. Raises NumericsError.

        scale: of a part of the gradients; None is the graph's own. strict: raises where digits are lost, too.
        """
        ...

    def lies(self, name: str, array: np.ndarray) -> Placed:
        """How a saved value lies that a hook has copied elsewhere. Raises NumericsError where that is no longer known."""
        ...

    def scales_own_gradients(self, plan: Plan) -> bool:
        """Whether a forward that gradients begin in has to be run by `backward`."""
        ...


#: True numbers.
AS_IT_IS = Placed()


class LossScaled:
    """One loss scale for all gradients of a graph; other values are stored as they are."""

    ranges = None

    def __init__(self) -> None:
        self.loss_scale = LossScale()

    def begin(self, executor: Running, scale: float) -> Call:
        return _ScaledCall(executor, scale)

    def backward(
        self, largest: float, execute: Callable[[float], tuple[Result, Reading]], scale: LossScale | None = None, strict: bool = False
    ) -> Result:
        return (scale or self.loss_scale).run(largest, execute, strict)

    def lies(self, name: str, array: np.ndarray) -> Placed:
        return Placed()

    def scales_own_gradients(self, plan: Plan) -> bool:
        if plan.gradients:
            self.loss_scale.highest = OWN_TARGET
        return bool(plan.gradients)


class _ScaledCall:
    stores_as_is = True

    def __init__(self, executor: Running, scale: float):
        self.executor = executor
        self.scale = scale
        self.reading = Reading()
        self._looked_at = executor.plan.gradients - executor.unstaged

    def _is_gradient(self, name: str) -> bool:
        return name in self.executor.plan.gradients

    def staged(self, copy: Copy, source: np.ndarray) -> float:
        return self.scale if self._is_gradient(copy.value) else 1.0

    def received(self, name: str, lying: Placed) -> None:
        """Weights and what was saved are stored as they are."""

    def moved(self, name: str, array: np.ndarray) -> None:
        """A copy is as good."""

    def is_beyond_fp16(self, name: str, largest: float) -> bool:
        return False  # what is stored is what it is, and fp16's infinities are counted

    def run(self, step: Dispatch, loaded: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer], run: RunProgram) -> None:
        executor = self.executor
        run(loaded, inputs, outputs)
        if executor.device.may_err:
            confirmed(executor.device, loaded, inputs, outputs, [native.scan(buffer.look()) for buffer in outputs])
        if not self._looked_at:
            return
        for name, buffer in zip(step.outputs, outputs, strict=True):
            if name in self._looked_at:
                self.reading.add(executor.named(name), *native.scan(buffer.look()))

    def leaving(self, name: str) -> float:
        return 1.0 / self.scale if self._is_gradient(name) else 1.0

    def left(self, name: str, read: tuple[float, int, int, int]) -> None:
        if self._is_gradient(name):
            is_named = read[1] or read[0] > self.reading.largest
            self.reading.add(self.executor.named(name) if is_named else name, *read)
            if read[0] < FAINT and not read[1]:
                self.reading.faint.append(name)

    def lying(self, name: str) -> Placed:
        return AS_IT_IS

    lend = lying


class RangeControlled:
    """A power of two for every tensor. lent: the exponents that saved values have had."""

    def __init__(self) -> None:
        self.ranges = RangeControl()
        self.loss_scale = LossScale()
        self.lent: dict[str, set[int]] = {}

    def begin(self, executor: Running, scale: float) -> Call:
        return _ControlledCall(executor, self)

    def backward(
        self, largest: float, execute: Callable[[float], tuple[Result, Reading]], scale: LossScale | None = None, strict: bool = False
    ) -> Result:
        require_finite(largest)
        reported = scale or self.loss_scale
        reported.last_scale = 2.0 ** placed_at(largest, GRADIENTS).exponent
        return execute(reported.last_scale)[0]

    def lies(self, name: str, array: np.ndarray) -> Placed:
        return placed_for(name, self.lent, array)

    def scales_own_gradients(self, plan: Plan) -> bool:
        return False


class _ControlledCall:
    stores_as_is = False

    def __init__(self, executor: Running, policy: RangeControlled):
        self.executor = executor
        self.policy = policy
        self.reading = Reading()
        self.placed: dict[str, Placed] = {}
        self.states: Iterator[DispatchRanges] = iter(policy.ranges.of(executor.plan.name, len(executor.plan.dispatches)))
        self.last_of: dict[int, DispatchRanges] = {}  # by program

    def staged(self, copy: Copy, source: np.ndarray) -> float:
        placed = staged_at(copy, source, copy.value in self.executor.plan.gradients)
        self.placed[copy.value] = placed
        return math.ldexp(1.0, placed.exponent)

    def received(self, name: str, lying: Placed) -> None:
        self.placed[name] = lying

    def moved(self, name: str, array: np.ndarray) -> None:
        self.placed[name] = self.policy.lies(name, array)

    def is_beyond_fp16(self, name: str, largest: float) -> bool:
        return math.ldexp(largest, -self.placed[name].exponent) > FP16_MAX

    def run(self, step: Dispatch, loaded: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer], run: RunProgram) -> None:
        """Programs that are not range-controlled have no ports for it, and give true numbers for true ones."""
        executor, state = self.executor, next(self.states)
        program = executor.plan.programs[step.program]
        if program.ranges is None:
            run(loaded, inputs, outputs)
            if executor.device.may_err:
                confirmed(executor.device, loaded, inputs, outputs, [native.scan(buffer.look()) for buffer in outputs])
            return
        lying, like = [self.placed[name] for name in step.read(program)], self.last_of.get(step.program)
        where = step.where or program.name
        found = dispatch_in_range(run, executor.device, executor.pool, loaded, program.ranges, state, inputs, outputs, lying, where, like)
        self.last_of[step.program] = state
        self.placed.update(zip(step.outputs, found, strict=True))

    def leaving(self, name: str) -> float:
        return math.ldexp(1.0, -self.placed[name].exponent)

    def left(self, name: str, read: tuple[float, int, int, int]) -> None:
        """What overflowed was run again at once."""

    def lying(self, name: str) -> Placed:
        return self.placed.get(name, Placed())

    def lend(self, name: str) -> Placed:
        placed = self.lying(name)
        self.policy.lent.setdefault(name, set()).add(placed.exponent)
        return placed
