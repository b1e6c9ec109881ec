"""Runs a Plan on a device.

Host values stay what the caller's framework has (torch tensors); a `Host` says how they are read and
made. Everything else lies in surfaces. Steps run in the plan's order, or, on a device that leaves the processor to the host, some of them beside
a dispatch (plan/overlap.py, beside.py); a surface that nothing reads any more goes back to the pool at once, and one that leaves the plan is lent
out. Observers are called before and after each step (observers.py).
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from torchane.abi.frozen import dequantised
from torchane.errors import TorchaneWarning
from torchane.plan import Copy, Plan, Stage, Unstage
from torchane.plan.overlap import one_by_one, overlapped
from torchane.plan.plan import surfaces_of
from torchane.runtime.device import Buffer, Device, LoadedProgram
from torchane.runtime.fp16_range import Doubts, NotInFp16, no_doubts
from torchane.runtime.frozen import Frozen
from torchane.runtime.gradients import Lying
from torchane.runtime.host import Host
from torchane.runtime.loss_scale import Reading
from torchane.runtime.numerics import Numerics
from torchane.runtime.observers import Observer
from torchane.runtime.rows import Rows
from torchane.runtime.run import Run
from torchane.runtime.surfaces import SurfacePool
from torchane.runtime.weights import Weights


class Executor:
    """A plan made ready for a device: called with the inputs, it gives the outputs."""

    def __init__(
        self,
        plan: Plan,
        device: Device,
        pool: SurfacePool,
        weights: Weights,
        host: Host,
        host_calls: Mapping[str, Callable[..., Sequence[Any]]],
        loaded: Sequence[LoadedProgram | None],
        numerics: Numerics,
        observers: Sequence[Observer] = (),
        frozen: Frozen | None = None,
        rows: Rows | None = None,
    ):
        self.plan = plan
        self.numerics = numerics
        self.device = device
        self.pool = pool
        self.weights = weights
        self.host = host
        self.host_calls = host_calls
        self.loaded = tuple(loaded)  # None: a program with constants, made for each dispatch when its weights are known
        self.frozen = Frozen() if frozen is None else frozen
        self.rows = Rows() if rows is None else rows
        self.observers = observers
        self.only_added: frozenset[str] = frozenset()  # values that are added to others and no more: faint ones do no harm
        self.of_weights: Mapping[str, str | None] = {}  # what leaves as a weight's gradient and nothing else; the weight, where nothing reads it after that
        self.lying: Mapping[str, Lying] = {}  # of these what is a part of one, and where
        # What a dispatch needs is prepared here: it should cost a few microseconds more than the engine's own time.
        stay = {copy.value for step in plan.steps if isinstance(step, Stage) for copy in step.copies if copy.stays}
        self.turns = (overlapped if device.frees_processor else one_by_one)(plan)
        order = [index for turn in self.turns for index in (*turn.beside, turn.step)]
        ordered = replace(plan, steps=tuple(plan.steps[index] for index in order))
        self.frees = {i: tuple(name for name in names if name not in stay) for i, names in zip(order, ordered.last_uses(), strict=True)}
        self.drops = dict(zip(order, ordered.last_reads(), strict=True))
        shapes = [[port.layout.shape for port in program.outputs] for program in plan.programs]
        self.prepared = {id(step): (_picking(step.inputs), shapes[step.program], frozenset[str]()) for step in plan.dispatches}
        self.staged = {id(step): _sorted(step) for step in plan.steps if isinstance(step, Stage)}
        self.kept_names = tuple(plan.kept_names)
        self.leaving = tuple((name, position in plan.kept) for position, name in enumerate(plan.outputs))
        self.unstaged = frozenset(copy.value for step in plan.steps if isinstance(step, Unstage) for copy in step.copies)
        self.pieces = frozenset(copy.value for step in plan.steps if isinstance(step, Unstage) for copy in step.copies if copy.part)
        self.said: set[str] = set()
        for observer in observers:
            observer.compiled(plan, self.loaded)

    @property
    def minds_losses(self) -> bool:
        """Whether float32 takes over where fp16 has no digits."""
        return not any(observer.wants_losses for observer in self.observers)

    def leave_gradients(self, of: Mapping[str, str]) -> int:
        """These values, by the weights whose gradients they are or are parts of, are read by nobody else; they may stay in surfaces that hold them in their own
        order (gradients.py). Gives the bytes of fp32 tensors that a step does without then."""
        read = {name: index for index, step in enumerate(self.plan.steps) for name in surfaces_of(step)}  # where it is met last
        copies = [(index, copy) for index, step in enumerate(self.plan.steps) if isinstance(step, Unstage) for copy in step.copies if copy.value in of]
        scattered = {copy.part.whole for _, copy in copies if copy.part is not None and (copy.part.axis or not copy.layout.is_own_order)}
        shapes = {copy.value: copy.layout.shape for step in self.plan.steps if isinstance(step, Stage) for copy in step.copies}
        found: dict[str, str | None] = {}
        lying: dict[str, Lying] = {}
        saved_bytes = 0
        for index, copy in copies:
            layout, weight, part = copy.layout, of[copy.value], copy.part
            if not layout.is_own_order or (part is not None and part.whole in scattered):
                continue
            # a weight whose surface another takes is written where its gradient lies, which therefore has the same shape
            is_spent = part is None and weight in read and read[weight] < index and shapes.get(weight) == layout.shape
            found[copy.value] = weight if is_spent else None
            saved_bytes += layout.type.size * (4 if is_spent else 2)  # where its weight's surface is not free it takes one more
            if part is not None:
                lying[copy.value] = Lying(part.whole, part.start * math.prod(part.shape[1:]), math.prod(part.shape), part.shape)
        self.of_weights, self.lying = found, lying
        self.prepared = {id(step): (*self.prepared[id(step)][:2], frozenset(lying).intersection(step.outputs)) for step in self.plan.dispatches}
        return saved_bytes

    def unstages_whole(self, value: str) -> bool:
        """A value that leaves in one piece."""
        return value in self.unstaged and value not in self.pieces

    def named(self, value: str) -> str:
        """A program's output, for people."""
        return value + self.host.place(value)

    def seen(self, name: str, value: Any) -> Any:
        """An input as programs see it: what they hold in few bits has those numbers for everybody."""
        form = self.plan.rounded.get(name)
        return value if form is None else self.host.wrap(dequantised(self.host.array(value), form))

    def say(self, found: NotInFp16, what: str) -> None:
        """Warns of what a forward met and what comes of it, once for each value."""
        if found.value not in self.said:
            self.said.add(found.value)
            warnings.warn(f"{found}: {what} Said once for this graph.", TorchaneWarning, stacklevel=3)

    def logical(self, inputs: Sequence[Any]) -> list[Any]:
        """The inputs with what an earlier plan kept in surfaces as tensors of true numbers, float32."""
        found = []
        for name, value in zip(self.plan.inputs, inputs, strict=True):
            layout = self.plan.surfaces_in.get(name)
            if layout is not None:
                lent, array = self.pool.find(self.host.address(value)), self.host.array(value)
                lying = self.numerics.lies(name, array) if lent is None else lent.lying
                true = np.ldexp(layout.logical_of(array.reshape(layout.shape)).astype(np.float32), -lying.exponent)
                value = self.host.wrap(true)
            found.append(value)
        return found

    def __call__(
        self, inputs: Sequence[Any], scale: float = 1.0, strict: bool = False, looks: bool = False, doubts: Doubts = no_doubts
    ) -> tuple[list[Any], Reading]:
        """The outputs, and what scaled gradients looked like.

        Where a gradient overflows the run stops, and the outputs are meaningless: run again with a smaller scale.
        strict: raises NotInFp16 where a run meets numbers that fp16 has not, or has no digits for; else a forward warns of them.
        looks: at weights and at what is saved, too. doubts: as in RangeLook.
        """
        with self.weights.lock:
            run = Run(self, inputs, scale, strict, looks, doubts)
            try:
                do = run.watched_by(self.observers) if self.observers else run.step
                for turn in self.turns:
                    if turn.beside:
                        works = [(index < turn.step, partial(self._carry_out, run, do, index)) for index in turn.beside]
                        run.beside.next([work for is_due, work in works if is_due], [work for is_due, work in works if not is_due])
                    if not self._carry_out(run, do, turn.step):
                        return [], run.overflowed or run.numbers.reading
                return run.outputs(), run.numbers.reading
            except BaseException:
                self.rows.forget()
                raise
            finally:
                run.release([name for name in run.surfaces if name not in run.borrowed])
                run.beside.next()
                run.run_program = self.device.run  # no circle with observers: gradients that a dead run still held would be copied by autograd

    def _carry_out(self, run: Run, do: Callable[[int], None], index: int) -> bool:
        """A step, and what nothing needs after it; whether the run goes on."""
        do(index)
        for name in self.drops[index]:
            run.values.pop(name, None)
        if run.overflowed is None and run.numbers.reading.overflowed:
            run.overflowed = replace(run.numbers.reading, faint=[*run.numbers.reading.faint])  # a dispatch that runs beside adds to it
        if run.overflowed is None and self.frees[index]:
            run.release(self.frees[index])
        return run.overflowed is None


def _picking(names: tuple[str, ...]) -> Callable[[Mapping[str, Buffer]], Sequence[Buffer]]:
    """These entries of a dictionary, in order."""
    return itemgetter(*names) if len(names) > 1 else lambda held: [held[name] for name in names]


def _sorted(step: Stage) -> tuple[tuple[Copy, ...], tuple[Copy, ...], tuple[Copy, ...]]:
    """Frozen weights that programs hold; all others; and what of these is no weight."""
    others = tuple(copy for copy in step.copies if not copy.is_constant)
    return tuple(copy for copy in step.copies if copy.is_constant), others, tuple(copy for copy in others if not copy.is_weight)
