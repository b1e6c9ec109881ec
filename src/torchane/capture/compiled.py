"""Compiled graphs: what is known of each, all of them, and who is told of a new one."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torchane.capture.compile_options import Options
from torchane.capture.kept import Kept, Recent
from torchane.capture.report import Row
from torchane.capture.roles import Given, Saved
from torchane.capture.sizes.told import Sizes
from torchane.native import pages
from torchane.passes.respell import respell
from torchane.plan import Plan
from torchane.runtime.device import Device
from torchane.runtime.devices import open_device
from torchane.runtime.frozen import Frozen
from torchane.runtime.loss_scale import LossScale
from torchane.runtime.numerics import LossScaled, Numerics, RangeControlled
from torchane.runtime.observers import Observer
from torchane.runtime.range_control import RangeControl
from torchane.runtime.rows import Rows
from torchane.runtime.surfaces import SurfacePool
from torchane.runtime.weights import Weights


@dataclass(eq=False)
class Compiled:
    """One captured graph with its backward: what tests, reports and `explain` look into. observers: of every step of its plans."""

    options: Options
    device: Device
    pool: SurfacePool
    inputs: Given
    numerics: Numerics
    observers: list[Observer] = field(default_factory=list)
    weights: Weights = field(default_factory=Weights)
    frozen: Frozen = field(default_factory=Frozen)
    written_rows: Rows = field(default_factory=Rows)
    memory: pages.Reused = field(default_factory=pages.Reused)
    saved: Saved = field(default_factory=Saved)
    plans: dict[str, Plan] = field(default_factory=dict)
    input_names: Mapping[str, str] = field(default_factory=dict)
    weight_names: Mapping[int, str] = field(default_factory=dict)  # AOTAutograd's, by Dynamo's index
    rows: list[Row] = field(default_factory=list)
    sizes: Sizes | None = None  # where sizes vary
    left_bytes: int = 0  # of gradients that an optimizer of ours reads in surfaces that are there anyway
    host_bytes: int = 0  # of what PyTorch computes on the host, in the graph that has more of it
    begun_s: float = field(default_factory=time.monotonic)
    traced: threading.Timer | None = None
    times_s: Counter[str] = field(default_factory=Counter)
    """Seconds spent on "trace" (AOTAutograd), "lower" and "load"."""

    @property
    def loss_scale(self) -> LossScale:
        return self.numerics.loss_scale

    @loss_scale.setter
    def loss_scale(self, state: LossScale) -> None:
        self.numerics.loss_scale = state

    @property
    def ranges(self) -> RangeControl | None:
        """The memory of range control, where that is the policy."""
        return self.numerics.ranges

    def rest(self) -> None:
        """Frees the surfaces that no tensor holds, and the memory of results that are gone."""
        self.memory.trim()
        self.pool.give_all(self.weights.forget())
        self.written_rows.free()
        self.pool.trim()

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.times_s[part] += time.perf_counter() - start


#: Every graph compiled in this process, oldest first, as long as torch keeps it.
COMPILED: Kept[Compiled] = Kept()

#: Who is told of each graph that this thread begins to compile.
_listeners: ContextVar[tuple[Callable[[Compiled], None], ...]] = ContextVar("listeners", default=())


@contextmanager
def told(listener: Callable[[Compiled], None], *, keeps: bool = True) -> Iterator[None]:
    """Within it, `listener` is given every graph that this thread compiles, as its compilation begins; its plans come later.
    keeps: the graphs stay among COMPILED afterwards."""
    before, known = _listeners.set((*_listeners.get(), listener)), len(COMPILED)
    try:
        yield
    finally:
        _listeners.reset(before)
        if not keeps:
            del COMPILED[known:]


#: What else a graph that this thread begins to compile is compiled for, from one trace.
_others: ContextVar[tuple[Options, ...]] = ContextVar("others", default=())


@contextmanager
def also_for(others: Sequence[Options]) -> Iterator[None]:
    """Within it, every graph is traced once and compiled for these options, too: their graphs are told of behind the first one."""
    before = _others.set(tuple(others))
    try:
        yield
    finally:
        _others.reset(before)


def others() -> tuple[Options, ...]:
    """What `also_for` was given."""
    return _others.get()


def device_of(options: Options) -> Device:
    """Raises DeviceError where it is not there."""
    return open_device(options.device, options.arithmetic) if isinstance(options.device, str) else options.device


def new_compiled(options: Options, inputs: Given) -> Compiled:
    """One whose compilation begins; those who listen are told of it. Raises DeviceError where its device is not there."""
    device = device_of(options)
    device.respell = respell
    pool = SurfacePool(device)
    numerics = RangeControlled() if options.wants_ranges(device) else LossScaled()
    compiled = Compiled(options, device, pool, inputs, numerics, list(options.observers))
    COMPILED.append(compiled)
    for listener in _listeners.get():
        listener(compiled)
    return compiled


#: Graphs that hold surfaces for their next run: training and validation, a few shapes of each. The others keep their
#: programs and allocate again, so that memory does not grow with the number of shapes.
WARM_GRAPHS = 8

_warm = Recent[Compiled](lambda compiled: compiled.rest())


def keep_warm(compiled: Compiled) -> None:
    """It was just used: the graph used longest ago, of more than WARM_GRAPHS, gives up what it holds for its next run."""
    _warm.use(compiled, WARM_GRAPHS)
