"""One call of a plan: the host values and surfaces that it holds, and what each step does to them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from torchane import native
from torchane.abi.ports import PortLayout
from torchane.mil.types import FP16, TensorType
from torchane.plan import Copy, Dispatch, Plan, Stage, Unstage
from torchane.runtime.beside import Beside
from torchane.runtime.device import Buffer, Device, LoadedProgram
from torchane.runtime.fp16_range import Doubts, NotInFp16, RangeLook
from torchane.runtime.frozen import Frozen, Seen, sums
from torchane.runtime.gradients import Gradient, Lying, keep
from torchane.runtime.host import Host
from torchane.runtime.loss_scale import Reading
from torchane.runtime.numerics import Numerics
from torchane.runtime.observers import Observer, Watched
from torchane.runtime.promise import promise
from torchane.runtime.rows import Rows, Written, write_rows
from torchane.runtime.staging import in_range, is_mirror, meeting
from torchane.runtime.surfaces import Held, SurfacePool
from torchane.runtime.weights import Weights


class Running(Protocol):
    """What is asked of the executor. staged: for each stage its frozen weights that programs hold, what it copies, and what of this is no weight. kept_names,
    leaving: what leaves in surfaces, and each output's name and whether it is one of them. prepared: for each dispatch what picks its surfaces, the shapes of its results, and which of these may lie in
    surfaces that others are parts of, too."""

    plan: Plan
    device: Device
    pool: SurfacePool
    weights: Weights
    host: Host
    host_calls: Mapping[str, Callable[..., Sequence[Any]]]
    loaded: Sequence[LoadedProgram | None]
    numerics: Numerics
    frozen: Frozen
    rows: Rows
    prepared: Mapping[int, tuple[Callable[[Mapping[str, Buffer]], Sequence[Buffer]], Sequence[tuple[int, ...]], frozenset[str]]]
    staged: Mapping[int, tuple[Sequence[Copy], Sequence[Copy], Sequence[Copy]]]
    kept_names: Sequence[str]
    leaving: Sequence[tuple[str | None, bool]]
    unstaged: frozenset[str]
    said: set[str]
    only_added: frozenset[str]
    of_weights: Mapping[str, str | None]
    lying: Mapping[str, Lying]

    @property
    def minds_losses(self) -> bool: ...

    def named(self, value: str) -> str: ...

    def seen(self, name: str, value: Any) -> Any: ...

    def say(self, found: NotInFp16, what: str) -> None: ...


class Run:
    """What one call holds: host values by name, surfaces by name, and which of these it must not give back. version: of the weights
    that it reads; a backward's is its forward's. A weight is among the surfaces once it was staged, or found to hold that version."""

    def __init__(self, executor: Running, inputs: Sequence[Any], scale: float, strict: bool, looks: bool, doubts: Doubts):
        self.executor = executor
        self.numbers = executor.numerics.begin(executor, scale)
        self.values: dict[str, Any] = dict(zip(executor.plan.inputs, inputs, strict=True))
        self.look = RangeLook(executor, self.values, self.numbers.is_beyond_fp16, strict, looks, doubts)
        self.surfaces: dict[str, Buffer] = {}
        self.constants: dict[str, Seen] = {}
        self.borrowed: set[str] = set()  # weights, and what other runs lent or are lent; the others go back to the pool
        self.wholes: dict[str, tuple[Any, np.ndarray]] = {}
        self.leaves_gradients = executor.weights.gradients.are_wanted
        self.left: dict[str, tuple[Gradient, np.ndarray]] = {}  # gradients of several parts, and the view that holds each
        self.rows_came: dict[str, tuple[float, int]] = {}  # what was staged in part: the largest of all of it, what is not finite in the part
        self.overflowed: Reading | None = None  # what scaled gradients looked like when the first did not fit
        self.beside = Beside(executor.device)
        self.run_program = self.beside.run if executor.device.frees_processor else executor.device.run
        received = [self._receive(name, layout) for name, layout in executor.plan.surfaces_in.items()]
        saved = next((held.version for held in received if held is not None), None)
        self.version = executor.weights.new_version() if saved is None else saved

    def watched_by(self, observers: Sequence[Observer]) -> Callable[[int], None]:
        """`step`, with observers around it."""
        watched = Watched(observers, self.executor.plan, self.run_program, self.step)
        self.run_program = watched.run
        return watched.step

    def step(self, index: int) -> None:
        step = self.executor.plan.steps[index]
        if isinstance(step, Dispatch):
            self.dispatch(step)
        elif isinstance(step, Stage):
            self.stage(step)
        elif isinstance(step, Unstage):
            self.unstage(step)
        else:
            results = self.executor.host_calls[step.key](*(self.executor.seen(name, self.values[name]) for name in step.inputs))
            self.values.update(zip(step.outputs, results, strict=True))

    def _receive(self, name: str, layout: PortLayout) -> Held | None:
        """A surface that an earlier plan kept; a copy, and None, where a hook moved the saved tensor meanwhile."""
        tensor = self.values[name]
        held = self.executor.pool.find(self.executor.host.address(tensor))
        if held is not None and tuple(held.buffer.type.shape) == layout.shape:
            self.surfaces[name] = held.buffer
            self.borrowed.add(name)
            self.numbers.received(name, held.lying)
            return held
        self.numbers.moved(name, self.executor.host.array(tensor))
        self._take(name, layout.shape)
        np.copyto(self.surfaces[name].array, self.executor.host.array(tensor).reshape(layout.shape))
        return None

    def _take(self, name: str, shape: tuple[int, ...]) -> None:
        self.surfaces[name] = self.executor.pool.take(shape)
        self.borrowed.discard(name)

    def release(self, names: Sequence[str]) -> None:
        self.executor.pool.give_all([self.surfaces.pop(name) for name in names if name not in self.borrowed])

    def stage(self, step: Stage) -> None:
        jobs, staged = [], []
        executor, weights = self.executor, self.executor.weights
        constants, copies, looked_at = executor.staged[id(step)]
        if constants:
            self._look_at_constants(constants)
        partly = {copy.value: found for copy in copies if (found := self._rows_of(copy)) is not None} if promise() is not None else {}
        for copy in copies:
            name = copy.value
            if copy.stays and self._is_there(name):
                continue
            if name in partly:
                if self._stage_rows(copy, partly[name]):
                    continue
                surface = self.surfaces[name] = executor.rows.surface(name, copy.layout.shape, executor.device)
                self.borrowed.add(name)
            elif copy.stays:
                surface = weights.surface(name, copy.layout.shape, executor.pool.take)
                staged.append((name, surface))
            else:
                if name not in self.surfaces or name in self.borrowed:
                    self._take(name, copy.layout.shape)
                surface = self.surfaces[name]
            source = in_range(executor.host.array(self.values[name]), copy)
            factor = self.numbers.staged(copy, source)
            jobs.append((*meeting(surface.array, source, copy.layout), factor))
            if copy.stays and self.numbers.stores_as_is:
                self._tell_mirror(name, surface.array, *jobs[-1][:2])
        if jobs:
            native.stage_many(jobs)
        for name, surface in staged:
            weights.staged(name, surface, self.version, self.numbers.lying(name))
            self._read_weight(name, weights.read(name, self.version))
        found = self.look.came(copies if self.look.looks else looked_at, self.surfaces, self.rows_came)
        for name, written in partly.items():
            if name in found:
                executor.rows.filled(name, written, promise(), found[name])

    def _rows_of(self, copy: Copy) -> Written | None:
        """The rows that changed of a tensor that a surface of its own may hold, under a promise; None where all of it is staged into one of the pool."""
        layout = copy.layout
        is_plain = not copy.is_weight and self.executor.numerics.ranges is None and layout.used == layout.shape[-1]
        return self.executor.host.written(self.values[copy.value]) if is_plain else None

    def _stage_rows(self, copy: Copy, written: Written) -> bool:
        """Whether the surface is there and holds the other rows: then it gets these."""
        rows = self.executor.rows
        buffer = rows.known(copy.value, written, promise())
        if buffer is None:
            return False
        source = in_range(written.of(self.executor.host.array(self.values[copy.value])), copy)
        largest, missing = write_rows(buffer, source, written, copy.layout.logical_of(buffer.array))
        self.numbers.staged(copy, source)
        self.rows_came[copy.value] = rows.filled(copy.value, written, promise(), largest), missing
        self.surfaces[copy.value] = buffer
        self.borrowed.add(copy.value)
        return True

    def _tell_mirror(self, name: str, surface: np.ndarray, stored: np.ndarray, source: np.ndarray) -> None:
        address = self.executor.host.address(self.values[name])
        if is_mirror(surface, stored, source, address):
            self.executor.weights.mirrors(name, address, source.size)

    def _is_there(self, name: str) -> bool:
        """Whether a weight's surface holds what this run needs: this version of it is staged, by a forward or by an optimizer."""
        weights = self.executor.weights
        held = weights.holding(name, self.version)
        if held is not None:
            self.numbers.received(name, held.lying)
        elif name in weights.ahead:
            held = weights.take_over(name, self.executor.host.identity(self.values[name]), self.version, self.numbers.lying(name))
        if held is not None:
            self._read_weight(name, held)
        return held is not None

    def _look_at_constants(self, copies: Sequence[Copy]) -> None:
        """What the frozen weights hold now, and the power of two that each is stored under."""
        host, frozen = self.executor.host, self.executor.frozen
        identities = {copy.value: host.identity(self.values[copy.value]) for copy in copies}
        unknown = []
        for copy in copies:
            seen = None if self.look.looks else frozen.promised(copy.value, identities[copy.value], promise())
            if seen is None:
                unknown.append(copy)
            else:
                self.numbers.received(copy.value, seen.lying)
                self.constants[copy.value] = seen
        arrays = {copy.value: host.array(self.values[copy.value]) for copy in unknown}
        found = sums(arrays) if arrays else {}
        for copy in unknown:
            seen = frozen.known(copy.value, found[copy.value])
            if seen is None or self.look.looks:
                self.look.constant(copy, arrays[copy.value])
            if seen is None:
                factor = self.numbers.staged(copy, arrays[copy.value])
                seen = frozen.see(copy.value, Seen(found[copy.value], self.numbers.lying(copy.value), factor))
            else:
                self.numbers.received(copy.value, seen.lying)
            seen = self.constants[copy.value] = replace(seen, address=host.address(self.values[copy.value]))
            frozen.promise(copy.value, identities[copy.value], promise(), seen)

    def _program_of(self, step: Dispatch) -> LoadedProgram:
        executor = self.executor
        loaded = executor.loaded[step.program]
        if loaded is not None:
            return loaded
        seen = [self.constants[name] for name in step.constants]
        return executor.frozen.program(
            executor.plan, step, seen, executor.device, lambda name: executor.host.array(self.values[name]),
            lambda name: executor.host.input(name) or executor.named(name),
        )  # fmt: skip

    def _read_weight(self, name: str, held: Held) -> None:
        self.surfaces[name] = held.buffer
        self.borrowed.add(name)

    def dispatch(self, step: Dispatch) -> None:
        surfaces, executor = self.surfaces, self.executor
        picked, shapes, parts = executor.prepared[id(step)]
        outputs = self._take_with_parts(step, shapes, parts) if parts and self.leaves_gradients else executor.pool.take_all(shapes)
        surfaces.update(zip(step.outputs, outputs, strict=True))
        self.numbers.run(step, self._program_of(step), picked(surfaces), outputs, self.run_program)

    def _take_with_parts(self, step: Dispatch, shapes: Sequence[tuple[int, ...]], parts: frozenset[str]) -> list[Buffer]:
        """Surfaces for its results; these among them lie in the surface of a whole gradient."""
        executor, taken = self.executor, []
        for name, shape in zip(step.outputs, shapes, strict=True):
            if name not in parts:
                taken.append(executor.pool.take(shape))
                continue
            lying = executor.lying[name]
            if lying.whole not in self.left:
                gradient = Gradient(executor.pool.take((1, 1, 1, lying.size)), executor.pool)
                self.left[lying.whole] = gradient, keep(gradient, lying.shape)
            taken.append(self.left[lying.whole][0].part(lying.begin, TensorType(FP16, shape)))
            self.borrowed.add(name)
        return taken

    def unstage(self, step: Unstage) -> None:
        executor = self.executor
        for copy in step.copies:
            if self.leaves_gradients and copy.value in executor.of_weights:
                self._stay(copy)
                continue
            name, value, target = self._room_for(copy)
            source = copy.layout.logical_of(self.surfaces[copy.value].look())
            read = native.unstage(target, source, self.numbers.leaving(copy.value))
            self.numbers.left(copy.value, read)
            if copy.value not in executor.plan.gradients and not executor.plan.is_backward:
                self.look.left(copy.value, read[0], read[1], is_whole=copy.part is None)
            is_complete = copy.part is None or copy.part.is_last
            self.values[name] = executor.host.finish(name, value) if is_complete else value
            if is_complete:
                self.wholes.pop(name, None)

    def _stay(self, copy: Copy) -> None:
        """A weight's gradient leaves as the fp16 numbers of its surface."""
        executor, surface = self.executor, self.surfaces[copy.value]
        factor, weight = self.numbers.leaving(copy.value), executor.of_weights[copy.value]
        self.numbers.left(copy.value, native.scan(surface.look()))
        self.borrowed.add(copy.value)
        if copy.part is not None:
            lying, (gradient, view) = executor.lying[copy.value], self.left[copy.part.whole]
            gradient.holds(factor, lying.begin, lying.begin + copy.layout.type.size)
            self.values[copy.part.whole] = executor.host.wrap(view)
            return
        gradient = Gradient(surface, executor.pool)
        gradient.holds(factor)
        self.values[copy.value] = executor.host.wrap(keep(gradient, copy.layout.logical))
        spent = executor.weights.done_with(weight, self.version) if weight is not None else None
        if spent is not None:
            self.surfaces.pop(weight, None)
            executor.pool.give(spent)

    def _room_for(self, copy: Copy) -> tuple[str, Any, np.ndarray]:
        """The value that is made, a tensor for it, and where in it the copy goes."""
        if copy.part is None:
            return copy.value, *self.executor.host.empty(copy.value, copy.layout.logical)
        part = copy.part
        if part.whole not in self.wholes:
            self.wholes[part.whole] = self.executor.host.empty(part.whole, part.shape)
        value, array = self.wholes[part.whole]
        room = slice(part.start, part.start + copy.layout.logical[part.axis])
        return part.whole, value, array[(slice(None),) * part.axis + (room,)]

    def outputs(self) -> list[Any]:
        executor = self.executor
        host, literals = executor.host, executor.plan.literals
        self.look.kept(self.surfaces)
        lent: dict[str, Any] = {}
        for name in executor.kept_names:
            self.borrowed.add(name)
            surface = self.surfaces[name]
            view = surface.array[...]
            lent[name] = host.wrap(view)
            executor.pool.lend(Held(surface, self.version, self.numbers.lend(name)), view, host.address(lent[name]))
        return [
            literals.get(position) if name is None else (lent if is_lent else self.values)[name]
            for position, (name, is_lent) in enumerate(executor.leaving)
        ]
