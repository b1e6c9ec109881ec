"""Runs a Plan on a device.

Host values stay what the caller's framework has (torch tensors); a `Host` says how they are read and
made. Everything else lies in surfaces. Steps run in the plan's order; a surface that nothing reads any
more goes back to the pool at once, and one that leaves the plan is lent out. Observers are called before and
after each step (observers.py).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Protocol

import numpy as np

from torchane import native
from torchane.abi.numbers import EXCLUDED, FP16_MAX, LEFT_OUT, MASKED
from torchane.abi.ports import PortLayout
from torchane.errors import TorchaneWarning
from torchane.mil.types import FP16, TensorType
from torchane.plan import Copy, Dispatch, Plan, Stage, Unstage
from torchane.runtime.device import Buffer, Device, LoadedProgram
from torchane.runtime.loss_scale import Reading
from torchane.runtime.numerics import Numerics
from torchane.runtime.observers import Observer, Watched
from torchane.runtime.surfaces import SurfacePool

_COMES_THROUGH = (
    "what comes of it is infinite or NaN, in other samples too. Scale inputs or weights down (a norm that comes first in the model is "
    "float32's), or look for the layer with torchane.audit."
)


class Host(Protocol):
    """How the executor reads and makes the caller's tensors."""

    def array(self, value: Any) -> np.ndarray:
        """The values of a tensor as float32 or float16, a view where that is possible."""
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


class NotInFp16(Exception):
    """A forward met numbers that programs have no right result for: value names them, the text says what they are."""

    def __init__(self, value: str, text: str):
        super().__init__(text)
        self.value = value


class Weights:
    """Surfaces of parameters: they live as long as the model and every forward stages anew what it reads.

    `generation` counts forwards, and backwards that had to stage again. `staged` is the generation in which each was
    staged last. A backward whose own forward was the last to run reads what that staged, and stages what that did not;
    any other stages all, from the tensors that autograd saved.
    """

    def __init__(self) -> None:
        self.surfaces: dict[str, Buffer] = {}
        self.generation = 0
        self.staged: dict[str, int] = {}

    def forget(self) -> None:
        """Frees the surfaces. A backward that waits for its turn stages again, from the tensors that autograd saved."""
        self.surfaces = {}
        self.staged = {}
        self.generation += 1


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
        loaded: Sequence[LoadedProgram],
        numerics: Numerics,
        observers: Sequence[Observer] = (),
    ):
        self.plan = plan
        self.numerics = numerics
        self.device = device
        self.pool = pool
        self.weights = weights
        self.host = host
        self.host_calls = host_calls
        self.loaded = tuple(loaded)
        self.observers = observers
        # What a dispatch needs is prepared here: it should cost a few microseconds beside the engine's own time.
        copies = [copy for step in plan.steps if isinstance(step, Stage) for copy in step.copies]
        stay = {copy.value for copy in copies if copy.is_weight}
        self.frees = tuple(tuple(name for name in names if name not in stay) for names in plan.last_uses())
        self.shapes = [[port.layout.shape for port in program.outputs] for program in plan.programs]
        self.inputs_of = {step.inputs: _picking(step.inputs) for step in plan.steps if isinstance(step, Dispatch)}
        self.unstaged = frozenset(copy.value for step in plan.steps if isinstance(step, Unstage) for copy in step.copies)
        self.said: set[str] = set()
        for observer in observers:
            observer.compiled(plan, self.loaded)

    def named(self, value: str) -> str:
        """A program's output, for people."""
        return value + self.host.place(value)

    def given(self, value: str) -> str:
        """What a program is given, for people."""
        name = self.host.input(value)
        return f"The input {name}" if name else f"What PyTorch computed as {self.named(value)}"

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
                lying: Any = lent[1]["lying"] if lent is not None else self.numerics.lies(name, array)
                true = np.ldexp(layout.logical_of(array.reshape(layout.shape)).astype(np.float32), -lying.exponent)
                value = self.host.wrap(true)
            found.append(value)
        return found

    def __call__(self, inputs: Sequence[Any], scale: float = 1.0, strict: bool = False, looks: bool = False) -> tuple[list[Any], Reading]:
        """The outputs, and what scaled gradients looked like.

        Where a gradient overflows the run stops, and the outputs are meaningless: run again with a
        smaller scale. strict: raises NotInFp16 where a forward meets infinities, NaN or numbers above 65504; else they are warned of.
        looks: for infinities in what is saved, too.
        """
        run = _Run(self, inputs, scale, strict, looks)
        try:
            do = run.watched_by(self.observers) if self.observers else run.step
            for index, free in enumerate(self.frees):
                do(index)
                if run.numbers.reading.overflowed:
                    return [], run.numbers.reading
                if free:
                    run.release(free)
            return run.outputs(), run.numbers.reading
        finally:
            run.release([name for name in run.surfaces if name not in run.borrowed])


def _picking(names: tuple[str, ...]) -> Callable[[Mapping[str, Buffer]], Sequence[Buffer]]:
    """These entries of a dictionary, in order."""
    return itemgetter(*names) if len(names) > 1 else lambda held: [held[name] for name in names]


class _Run:
    """What one call holds: host values by name, surfaces by name, and which of these it must not give back."""

    def __init__(self, executor: Executor, inputs: Sequence[Any], scale: float, strict: bool, looks: bool):
        self.executor = executor
        self.looks = looks
        self.strict = strict
        self.numbers = executor.numerics.begin(executor, scale)
        self.values: dict[str, Any] = dict(zip(executor.plan.inputs, inputs, strict=True))
        self.surfaces: dict[str, Buffer] = dict(executor.weights.surfaces)
        self.borrowed: set[str] = set(self.surfaces)  # the others go back to the pool
        self.wholes: dict[str, tuple[Any, np.ndarray]] = {}
        self.run_program = executor.device.run
        self.generation: int | None = None  # of the weights that this run reads; None until it stages one
        if not executor.plan.is_backward:
            self._begin_generation()
        for name, layout in executor.plan.surfaces_in.items():
            self._receive(name, layout)

    def watched_by(self, observers: Sequence[Observer]) -> Callable[[int], None]:
        """`step`, with observers around it."""
        watched = Watched(observers, self.executor.plan, self.executor.device.run, self.step)
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
            results = self.executor.host_calls[step.key](*(self.values[name] for name in step.inputs))
            self.values.update(zip(step.outputs, results, strict=True))

    def _receive(self, name: str, layout: PortLayout) -> None:
        """A surface that an earlier plan kept; a copy, where a hook moved the saved tensor meanwhile."""
        tensor = self.values[name]
        found = self.executor.pool.find(self.executor.host.address(tensor))
        if found is not None and tuple(found[0].type.shape) == layout.shape:
            self.surfaces[name], notes = found
            self.borrowed.add(name)
            if notes["generation"] == self.executor.weights.generation:
                self.generation = self.executor.weights.generation
            self.numbers.received(name, notes["lying"])  # type: ignore[arg-type]
            return
        self.numbers.moved(name, self.executor.host.array(tensor))
        self._take(name, layout.shape)
        np.copyto(self.surfaces[name].array, self.executor.host.array(tensor).reshape(layout.shape))

    def _begin_generation(self) -> int:
        self.executor.weights.generation += 1
        self.generation = self.executor.weights.generation
        return self.generation

    def _take(self, name: str, shape: tuple[int, ...]) -> None:
        self.surfaces[name] = self.executor.pool.take(shape)

    def release(self, names: Sequence[str]) -> None:
        self.executor.pool.give_all(map(self.surfaces.pop, names))

    def stage(self, step: Stage) -> None:
        jobs = []
        weights = self.executor.weights
        if self.generation is None and any(copy.is_weight for copy in step.copies):
            self._begin_generation()
        for copy in step.copies:
            if copy.is_weight:
                surface = weights.surfaces.get(copy.value)
                if surface is None:
                    surface = self.executor.device.allocate(TensorType(FP16, copy.layout.shape))
                    weights.surfaces[copy.value] = surface
                elif weights.staged.get(copy.value) == self.generation:
                    self.numbers.is_staged_already(copy.value)
                    continue
                self.surfaces[copy.value] = surface
                self.borrowed.add(copy.value)
                weights.staged[copy.value] = self.generation  # type: ignore[assignment]
            elif copy.value not in self.surfaces or copy.value in self.borrowed:
                self._take(copy.value, copy.layout.shape)
            source = self.executor.host.array(self.values[copy.value])
            if copy.masks:
                source = _with_masks_in_range(source, copy.masks)
            if copy.is_mask:
                beyond = np.where(np.isneginf(source), np.float32(EXCLUDED), np.float32(MASKED))
                source = np.where(source <= LEFT_OUT, beyond, source)
            factor = self.numbers.staged(copy, source)
            jobs.append((*_meeting(self.surfaces[copy.value].array, source, copy.layout), factor))
        native.stage_many(jobs)
        if not self.executor.plan.is_backward:
            self._look_at_what_came(step)

    def _look_at_what_came(self, step: Stage) -> None:
        """Before a program reads it: what is infinite or NaN, or becomes so in fp16, spreads to other samples through sums and through
        products with constant zeros."""
        executor = self.executor
        for copy in step.copies:
            if copy.is_weight or copy.value in executor.plan.gradients:
                continue
            largest, missing, _, _ = native.scan(self.surfaces[copy.value].array)
            found = self._unfit(copy) if missing or self.numbers.is_beyond_fp16(copy.value, largest) else None
            if found is not None and self.strict:
                raise found
            if found is not None and not executor.said:
                executor.say(found, _COMES_THROUGH)

    def _unfit(self, copy: Copy) -> NotInFp16 | None:
        """What in a value that was staged, or is a weight, fp16 does not hold."""
        name = self.executor.given(copy.value)
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

    def dispatch(self, step: Dispatch) -> None:
        surfaces, executor = self.surfaces, self.executor
        outputs = executor.pool.take_all(executor.shapes[step.program])
        surfaces.update(zip(step.outputs, outputs, strict=True))
        self.numbers.run(step, executor.inputs_of[step.inputs](surfaces), outputs, self.run_program)

    def unstage(self, step: Unstage) -> None:
        executor = self.executor
        for copy in step.copies:
            name, value, target = self._room_for(copy)
            source = copy.layout.logical_of(self.surfaces[copy.value].array)
            read = native.unstage(target, source, self.numbers.leaving(copy.value))
            self.numbers.left(copy.value, read)
            if copy.value not in executor.plan.gradients and read[1] and not executor.plan.is_backward:
                self._look_at_what_leaves(copy.value, read[1])
            is_complete = copy.part is None or copy.part.is_last
            self.values[name] = executor.host.finish(name, value) if is_complete else value
            if is_complete:
                self.wholes.pop(name, None)

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

    def _look_at_what_leaves(self, name: str, count: int) -> None:
        executor = self.executor
        copies = (copy for step in executor.plan.steps if isinstance(step, Stage) for copy in step.copies)
        came = (self._unfit(copy) for copy in copies if copy.value in self.values)
        cause = next((found for found in came if found is not None), None)
        found = cause or NotInFp16(
            name,
            f"{count:,} values of {executor.named(name)} are infinite or NaN, and nothing that came in is: an activation left "
            "fp16's range (65504), in which programs compute, or the model makes infinities of its own",
        )
        if self.strict:
            raise found
        if not executor.said:
            executor.say(found, _COMES_THROUGH)

    def outputs(self) -> list[Any]:
        plan, executor = self.executor.plan, self.executor
        for name in plan.kept_names if self.looks else ():
            count = native.scan(self.surfaces[name].array)[1]
            if count:
                self._look_at_what_leaves(name, count)
        lent: dict[str, Any] = {}
        for name in plan.kept_names:
            self.borrowed.add(name)
            notes = {"generation": executor.weights.generation, "lying": self.numbers.lend(name)}
            lent[name] = executor.host.wrap(executor.pool.lend(self.surfaces[name], notes))
        return [
            plan.literals.get(position) if name is None else (lent if position in plan.kept else self.values)[name]
            for position, name in enumerate(plan.outputs)
        ]


def _with_masks_in_range(source: np.ndarray, factors: tuple[float, ...]) -> np.ndarray:
    """What is a factor becomes MASKED or its mirror, and twice that what is a multiple of it, masks added to each other: less
    masked stays more. An infinity, two of the lowest numbers added, becomes EXCLUDED or its mirror."""
    magnitude = np.abs(source)
    stands = np.zeros(source.shape, np.float32)
    for factor in factors:
        with np.errstate(over="ignore", invalid="ignore"):
            times = magnitude / np.float32(abs(factor))
            is_multiple = (np.abs(times - np.round(times)) < 1e-4) & (times > 0.5) & (times < 4.5)
        stands = np.maximum(stands, np.where(is_multiple, -MASKED * np.minimum(np.round(times), 2), 0))
    source = np.where(stands > 0, np.copysign(stands, source), source)
    return np.where(np.isinf(source), np.copysign(np.float32(-EXCLUDED), source), source)


def _meeting(surface: np.ndarray, source: np.ndarray, layout: PortLayout) -> tuple[np.ndarray, np.ndarray]:
    """The surface and the host's values as two arrays of one shape."""
    assert source.shape == layout.logical, f"a value of shape {source.shape} was to be staged as {layout.logical}"
    stored = source.transpose(layout.perm)
    if layout.used == layout.shape[-1]:
        return surface.reshape(stored.shape), stored
    surface[..., layout.used :] = 0  # a NaN that was there before times a constant zero is NaN
    return surface[..., : layout.used], np.ascontiguousarray(stored).reshape(*layout.shape[:-1], layout.used)
