"""The `ane` device: programs on Apple's Neural Engine, surfaces that stay where they are.

    load ──► source, cache ──► compiled, loaded ──► at most `most_loaded` at once, the one used longest ago goes first
    run  ──► surfaces bound ──► engine ──► compared with the twin: a program's first dispatch and every `verify_every`th

A program whose numbers are wrong is quarantined: that dispatch and all later ones are the twin's, and the user is told
once. An error of the framework is met with its remedy once (policies.py), and then raised with Apple's words. Dispatches
run one at a time; any thread may call.
"""

import math
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from torchane import native
from torchane.errors import AppleError, DeviceError, TorchaneError, TorchaneWarning
from torchane.mil.check import check
from torchane.mil.ir import Program
from torchane.mil.types import TensorType
from torchane.runtime.ane.cache import CompileCache, default_root
from torchane.runtime.ane.framework import Framework, require_route
from torchane.runtime.ane.policies import Meaning, Remedy, meaning_of
from torchane.runtime.ane.source import Source, places, source_of
from torchane.runtime.ane.trust import Seen, confirm, key_of, verify
from torchane.runtime.ane.verify import Verifier
from torchane.runtime.ane.watchdog import COMPILE_S, DISPATCH_S, MOST_HANGS, Watchdog
from torchane.runtime.device import Buffer, Limits, LoadedProgram, ProgramStats, Submitted, require_surface
from torchane.runtime.submissions import Submissions
from torchane.runtime.twin import TwinProgram, load_program, read_program

#: Programs that one process may have loaded: 126 to 128 were counted on M4 Max and M5 Max; some are left for others.
MOST_LOADED = 100
VERIFY_EVERY = 1000
#: Ports whose rows are no whole number of 64 bytes give zeros or status 0x1d.
WIDTH_MULTIPLE = 32
#: Surfaces that one dispatch can have.
MOST_SURFACES = 128
#: Before a call is repeated: transient refusals, and the compiler's service, which takes some 10 s to come back.
PAUSE_S, SERVICE_S = 0.1, 15.0

_SURFACE, _USED = attrgetter("surface"), attrgetter("used")

T = TypeVar("T")


class AneBuffer:
    """A surface that host and engine see. Its array is the host's from the first look on; a dispatch takes the surface
    for its own time. version: rises whenever the host may have written."""

    __slots__ = ("__weakref__", "_view", "serial", "surface", "type", "version")
    _serials = iter(range(1 << 62))

    def __init__(self, type: TensorType, route: str, capacity_bytes: int = 0):
        self.type = type
        self.surface = native.apple.Surface(route, max(type.size_bytes, capacity_bytes))
        self.serial = next(AneBuffer._serials)
        self.version = 0
        self._view: np.ndarray | None = None

    @property
    def capacity_bytes(self) -> int:
        return int(self.surface.capacity_bytes)

    @property
    def array(self) -> np.ndarray:
        self.version += 1  # whoever asks may write
        return self.look()

    def look(self) -> np.ndarray:
        """Its array, for reading only."""
        if self._view is None:
            self._view = self.surface.memory[: self.type.size_bytes].view(np.float16).reshape(self.type.shape)
        elif not self.surface.is_held:
            self.surface.hold()
        return self._view


@dataclass(eq=False)
class AneProgram:
    """A program and what is known of it here. ready: its form in the framework, None while it is not loaded."""

    name: str
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    stats: ProgramStats
    source: Source
    twin: TwinProgram
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    ready: Any = None
    dispatches: int = 0
    since_load: int = 0
    quarantine: str = ""
    is_told: bool = False  # of anything about it
    seen: Seen = field(default_factory=Seen)
    runs: list[int] = field(default_factory=lambda: [0])
    used: int = 0  # when it was used last, in dispatches of the device
    compared: int = 0  # when it was compared with the twin last, likewise
    padded: dict[int, Any] = field(default_factory=dict)


class AneDevice:
    """The engine through one route. Opened by `devices.open_device("ane")`, which first asks `first_light`.

    equal_surfaces: this system wants all inputs of a program, and all outputs, in surfaces of one size; smaller ones are
    then copied into larger ones. verifies: False only where the caller compares the numbers itself. patience: multiplies the pauses before a call is repeated.
    wrong_ops: what torchane doctor found wrong on this machine, by op; programs do without. op_steps: by op, how far off it found those
    that are right, in steps of fp16.
    """

    name = "ane"
    #: Its numbers follow the rules of mil/engine, as far as these are known; range control is for this arithmetic.
    arithmetic = "engine"
    #: The bridge waits for the engine without the interpreter's lock.
    frees_processor = True

    def __init__(
        self,
        framework: Framework,
        route: str = "memory",
        *,
        cache: CompileCache | None = None,
        most_loaded: int = MOST_LOADED,
        verify_every: int = VERIFY_EVERY,
        verifies: bool = True,
        equal_surfaces: bool = False,
        dispatch_s: float = DISPATCH_S,
        patience: float = 1.0,
        wrong_ops: Mapping[str, str] | None = None,
        op_steps: Mapping[str, float] | None = None,
    ):
        require_route(framework, route)
        self.framework = framework
        self.route = route
        self.cache = cache or CompileCache(default_root(), framework.build)
        self.most_loaded = most_loaded
        self.verify_every = verify_every
        self.verifies = verifies
        self.equal_surfaces = equal_surfaces
        self.dispatch_s = dispatch_s
        self.patience = patience
        self.wrong_ops = dict(wrong_ops or {})
        self.respell: Callable[[Program], Program] | None = None
        self.counts: Counter[str] = Counter()  # compiles, loads, unloads, dispatches, verified, retries, quarantined
        self._held: weakref.WeakSet[AneProgram] = weakref.WeakSet()
        self._executed: Counter[str] = Counter()  # by programs that are gone
        self.verifier = Verifier(op_steps)
        self._watchdog = Watchdog(self.cache.root / "hangs.json")
        self._resident: dict[int, weakref.ref[AneProgram]] = {}  # by id
        self._lock = threading.RLock()
        self._submissions = Submissions(self.run)
        self._finalizer = weakref.finalize(self, _close, self._resident, self._watchdog)

    @property
    def may_err(self) -> bool:
        return self.verifies

    @property
    def limits(self) -> Limits:
        return Limits(self.most_loaded, MOST_SURFACES, WIDTH_MULTIPLE)

    @property
    def loaded(self) -> int:
        return len(self._alive())

    @property
    def executed(self) -> Mapping[str, int]:
        """How often each MIL op was executed since the device was opened, by engine or twin."""
        total = Counter(self._executed)
        for made in self.programs:
            total.update(_ops_run(made.stats, made.runs))
        return +total

    @property
    def programs(self) -> list[AneProgram]:
        """Every loaded program that somebody holds; `quarantine` says of each whether the twin computes it, and why."""
        return list(self._held)

    def load(self, text: str, blobs: Mapping[str, bytes], *, name: str = "main") -> AneProgram:
        try:
            program = read_program(text, blobs, name)
            check(program)
        except TorchaneError as error:
            raise DeviceError(f"{name}: the Neural Engine is not given this program. {error}") from error
        twin = load_program(program, name, "engine")
        input_names, output_names = (tuple(var.name for var in ports) for ports in (program.inputs, program.outputs))
        self.limits.require(name, dict(zip((*input_names, *output_names), (*twin.inputs, *twin.outputs), strict=True)))
        source = source_of(text, blobs, self.framework.architecture)
        made = AneProgram(name, twin.inputs, twin.outputs, twin.stats, source, twin, input_names, output_names)
        with self._lock:
            if self._watchdog.hangs(source.key) >= MOST_HANGS:
                self.quarantine(made, f"it has hung {self._watchdog.hangs(source.key)} times on this machine")
            else:
                if len(self._alive()) < self.most_loaded:
                    self._make_resident(made)
                else:  # it gets its place at its first run; a refusal to compile is told now
                    self._compiled(made)
                    self.cache.release(source)
        self._held.add(made)
        gone = weakref.finalize(made, _gone, self._resident, id(made), self.cache, source)
        counted = weakref.finalize(made, lambda total, stats, runs: total.update(_ops_run(stats, runs)), self._executed, made.stats, made.runs)
        gone.atexit = counted.atexit = False
        return made

    def unload(self, program: LoadedProgram) -> None:
        """Gives its place on the engine back; the next run loads it again."""
        with self._lock:
            self.drop(self._own(program))

    def allocate(self, type: TensorType, *, capacity_bytes: int = 0) -> AneBuffer:
        require_surface(type, "a surface")
        try:
            return AneBuffer(type, self.route, capacity_bytes)
        except AppleError as error:
            raise DeviceError(f"a surface of {type.size_bytes:,} bytes cannot be had: {error}. Close other programs, or train a smaller model.") from error

    def run(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> None:
        made = program if type(program) is AneProgram else self._own(program)
        if not self._submissions.is_idle:
            self._submissions.drain()
        with self._lock:
            ready, seen, every = made.ready, made.seen, self.verify_every
            is_due = self.verifies and (not seen.has_seen_changes or every and (made.dispatches + 1) % every == 0)
            error = None
            if ready is not None and not is_due and not self.equal_surfaces:
                try:
                    if ready.run_again(inputs, outputs):  # with surfaces that it has run with before
                        made.runs[0] += 1
                        made.dispatches += 1
                        made.used = self.counts["dispatches"] = self.counts["dispatches"] + 1
                        return
                except AppleError as first:
                    error = first
            self._run_looking(made, inputs, outputs, error)

    def _run_looking(self, made: AneProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer], error: AppleError | None = None) -> None:
        """A run with all that may be due: the ports are checked, the program is loaded, the numbers are compared with the twin's.
        error: what the first attempt came to."""
        self._check_ports(made, inputs, outputs)
        made.runs[0] += 1
        made.used = self.counts["dispatches"] = self.counts["dispatches"] + 1
        if made.quarantine:
            self._run_on_twin(made, inputs, outputs)
            return
        key = key_of(inputs, outputs)
        self._dispatch(made, list(map(_SURFACE, inputs)), list(map(_SURFACE, outputs)), error)
        made.dispatches += 1
        made.since_load += 1
        if self.verifies and self._is_due(made, key, inputs):
            verify(self, made, key, inputs, outputs)

    def confirm(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> bool:
        with self._lock:
            return confirm(self, self._own(program), inputs, outputs)

    def submit(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> Submitted:
        return self._submissions.submit(program, inputs, outputs)

    def wait(self, submitted: Submitted) -> None:
        self._submissions.wait(submitted)

    def close(self) -> None:
        """Unloads everything."""
        with self._lock:
            for made in self._alive():
                self.drop(made)
            self._watchdog.close()

    # Programs on the engine

    def _make_resident(self, made: AneProgram) -> None:
        """Loads a program, after unloading the one used longest ago where there are too many."""
        for older in self._alive()[: max(0, len(self._resident) + 1 - self.most_loaded)]:
            self.drop(older)
        ready = self._compiled(made)
        self._watchdog.begin(made.name, made.source.key, COMPILE_S)
        try:
            self._with_remedy(made, ready.load, lambda: self._compile(made, ready, anew=True))
        finally:
            self._watchdog.end()
        self.counts["loads"] += 1
        attributes = ready.attributes()
        ready.bind(
            places(made.input_names, False, attributes, made.name),
            places(made.output_names, True, attributes, made.name),
            [port.size_bytes for port in made.outputs],
        )
        made.ready = ready
        made.since_load = 0
        ready.watch(self._watchdog.owner, made.name, made.source.key, self.dispatch_s)
        self._watchdog.runs(self.dispatch_s)
        made.used = self.counts["dispatches"]
        self._resident[id(made)] = weakref.ref(made)

    def _compiled(self, made: AneProgram) -> Any:
        """The program's form in the framework, compiled and not yet loaded."""
        folder = self.cache.prepare(made.source)
        weights = [(path, data) for path, data in made.source.weights.items()]
        text = made.source.text.encode()
        ready = self._with_remedy(made, lambda: native.apple.make(self.route, str(folder), text, weights, list(made.input_names), list(made.output_names)))
        if ready.directory != str(folder):
            self.cache.rewrite(made.source, Path(ready.directory))
        self._watchdog.begin(made.name, made.source.key, COMPILE_S)
        try:
            if not ready.is_compiled():
                self._compile(made, ready)
        finally:
            self._watchdog.end()
        return ready

    def _compile(self, made: AneProgram, ready: Any, anew: bool = False) -> None:
        def compile() -> None:
            self.counts["compiles"] += 1
            ready.compile()

        if anew:
            ready.purge()
            self.cache.rewrite(made.source, Path(ready.directory))
        self._with_remedy(made, compile)

    def _alive(self) -> list[AneProgram]:
        """The loaded programs, the one used longest ago first."""
        return sorted((made for held in list(self._resident.values()) if (made := held()) is not None), key=_USED)

    def drop(self, made: AneProgram) -> None:
        """Unloads a program. A refusal to do so is counted, and the program is forgotten: nothing else can be done."""
        self._resident.pop(id(made), None)
        ready, made.ready = made.ready, None
        if ready is not None:
            self.counts["unloads"] += 1
            _unload(ready, self.counts)
            self.cache.release(made.source)

    def _with_remedy(self, made: AneProgram, act: Callable[[], T], rebuild: Callable[[], None] | None = None) -> T:
        """act(), and once more after the remedy for its error. Raises DeviceError with Apple's words."""
        try:
            return act()
        except AppleError as error:
            return self._again(made, error, act, rebuild)

    def _again(self, made: AneProgram, error: AppleError, act: Callable[[], T], rebuild: Callable[[], None] | None) -> T:
        meaning = meaning_of(error, self.counts["compiles"])
        if not self._remedied(made, meaning, rebuild):
            raise _named(made, error, meaning) from error
        self.counts["retries"] += 1
        try:
            return act()
        except AppleError as error:
            raise _named(made, error, meaning_of(error, self.counts["compiles"]), "again") from error

    def _remedied(self, made: AneProgram, meaning: Meaning, rebuild: Callable[[], None] | None) -> bool:
        match meaning.remedy:
            case Remedy.AGAIN:
                time.sleep(PAUSE_S * self.patience)
                return True
            case Remedy.WAIT:
                time.sleep(SERVICE_S * self.patience)
                return True
            case Remedy.ROOM:
                older = [one for one in self._alive() if one is not made]
                for one in older[: max(1, len(older) // 2)]:
                    self.drop(one)
                if not older:  # the room is taken by other processes, which come and go
                    time.sleep(PAUSE_S * self.patience)
                return True
            case Remedy.REBUILD | Remedy.RELOAD if rebuild is not None:
                rebuild()
                return True
        return False

    # Dispatches

    def _dispatch(self, made: AneProgram, inputs: list[Any], outputs: list[Any], error: AppleError | None) -> None:
        if error is None:
            try:
                self.attempt(made, inputs, outputs)
                return
            except AppleError as first:
                error = first
        try:
            self._again(made, error, lambda: self.attempt(made, inputs, outputs), lambda: self.drop(made))
        except DeviceError as named:
            cause = named.__cause__
            if not isinstance(cause, AppleError) or meaning_of(cause).remedy is not Remedy.OVERFLOW:
                raise
            for surface, port in zip(outputs, made.outputs, strict=True):
                surface.memory[: port.size_bytes].view(np.float16)[:] = math.inf

    def attempt(self, made: AneProgram, inputs: list[Any], outputs: list[Any]) -> None:
        """One run on the engine, after loading the program where it is not."""
        if made.ready is None:
            self._make_resident(made)
        self._engine_run(made, inputs, outputs)

    def _engine_run(self, made: AneProgram, inputs: list[Any], outputs: list[Any]) -> None:
        if not self.equal_surfaces or (_are_equal(inputs) and _are_equal(outputs)):
            made.ready.run(inputs, outputs)
            return
        larger_in, larger_out = self._padded(made, 0, inputs), self._padded(made, len(inputs), outputs)
        for target, surface, port in zip(larger_in, inputs, made.inputs, strict=True):
            target.memory[: port.size_bytes] = surface.memory[: port.size_bytes]
        made.ready.run(larger_in, larger_out)
        for target, surface, port in zip(outputs, larger_out, made.outputs, strict=True):
            target.memory[: port.size_bytes] = surface.memory[: port.size_bytes]

    def _padded(self, made: AneProgram, first: int, surfaces: list[Any]) -> list[Any]:
        """Surfaces of the program's own, all as large as the largest of these."""
        largest = max(surface.capacity_bytes for surface in surfaces)
        for index in range(first, first + len(surfaces)):
            if index not in made.padded or made.padded[index].capacity_bytes < largest:
                made.padded[index] = native.apple.Surface(self.route, largest)
        return [made.padded[index] for index in range(first, first + len(surfaces))]

    def _is_due(self, made: AneProgram, key: tuple[int, ...], inputs: Sequence[Any]) -> bool:
        return made.since_load == 1 or made.seen.is_due(key, inputs) or bool(self.verify_every and made.dispatches % self.verify_every == 0)

    def quarantine(self, made: AneProgram, why: str) -> None:
        """Leaves a program to the twin."""
        made.quarantine = why
        self.drop(made)
        self.counts["quarantined"] += 1
        warnings.warn(
            f"{made.name}: the twin computes this program from now on, in place of the Neural Engine: {why}. The twin is slower, and what "
            "the engine was compared with. Please report it with the program (--dump).",
            TorchaneWarning,
            stacklevel=3,
        )

    def _run_on_twin(self, made: AneProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> None:
        self.verifier.twin.run_arrays(made.twin, [b.array for b in inputs], [b.array for b in outputs])

    def _own(self, program: LoadedProgram) -> AneProgram:
        if not isinstance(program, AneProgram):
            raise DeviceError(f"{program.name} was loaded by another device. Load it on the engine to run it there.")
        return program

    def _check_ports(self, made: AneProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> None:
        for kind, given, ports in (("input", inputs, made.inputs), ("output", outputs, made.outputs)):
            if len(given) != len(ports):
                raise DeviceError(f"{made.name} has {len(ports)} {kind}s and was given {len(given)}.")
            for index, (buffer, port) in enumerate(zip(given, ports, strict=True)):
                if not isinstance(buffer, AneBuffer):
                    raise DeviceError(f"{made.name}: {kind} {index} is no surface of this device; allocate it here.")
                if buffer.type.shape != port.shape:
                    raise DeviceError(f"{made.name}: {kind} {index} has the shape {buffer.type.shape}; the port's is {port.shape}.")
        seen = {id(buffer): f"input {index}" for index, buffer in enumerate(inputs)}
        for index, buffer in enumerate(outputs):
            if id(buffer) in seen:
                raise DeviceError(f"{made.name}: output {index} shares memory with {seen[id(buffer)]}. Give every output a surface of its own.")
            seen[id(buffer)] = f"output {index}"


def _are_equal(surfaces: list[Any]) -> bool:
    return len({surface.capacity_bytes for surface in surfaces}) <= 1


def _ops_run(stats: ProgramStats, runs: list[int]) -> dict[str, int]:
    return {kind: count * runs[0] for kind, count in stats.float_ops.items()}


def _named(made: AneProgram, error: AppleError, meaning: Meaning, again: str = "") -> DeviceError:
    tried = f" ({again}, after: {meaning.remedy.value})" if again else ""
    return DeviceError(f"{made.name}: the Neural Engine: {error}{tried}. {meaning}")


def _unload(ready: Any, counts: Counter[str] | None = None) -> None:
    try:
        if ready.is_loaded:
            ready.unload()
    except AppleError:
        if counts is not None:
            counts["failed unloads"] += 1


def _gone(resident: dict[int, "weakref.ref[AneProgram]"], key: int, cache: CompileCache, source: Source) -> None:
    """A program that nobody holds any more; its `ready` unloads itself as it goes."""
    if resident.pop(key, None) is not None:
        cache.release(source)


def _close(resident: dict[int, "weakref.ref[AneProgram]"], watchdog: Watchdog) -> None:
    watchdog.close()
    for held in list(resident.values()):
        made = held()
        if made is not None and made.ready is not None:
            _unload(made.ready)
    resident.clear()
