"""What is said while a graph is compiled: first what PyTorch will run, then, where it takes long, that it goes on.

    torchane: compiling the backward, 12 s so far: 5 of at most 18 programs. The first step waits for it.
While a step is only planned the plan waits for it, and no program is loaded. Lines go to standard error, the first after five seconds and one every ten from then on, on a terminal and in a log alike. What
runs in PyTorch is a warning, given as soon as the graph is cut: whoever minds need not wait for the rest.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torchane.capture.graph import Cut
from torchane.capture.report import HostWork

FIRST_S, INTERVAL_S = 5.0, 10.0

#: What waits for a compilation.
_STEP, _PLAN = "first step", "plan"
_waiting: ContextVar[str] = ContextVar("waiting", default=_STEP)


@contextmanager
def planning() -> Iterator[None]:
    """Within it nothing will run: a plan is all that is wanted."""
    before = _waiting.set(_PLAN)
    try:
        yield
    finally:
        _waiting.reset(before)


class Progress:
    """Of one graph. begun_s: when its compilation began, of `time.monotonic`. is_on: lines are wanted; warnings always are."""

    def __init__(self, graph: str, begun_s: float, is_on: bool):
        self.host_work = HostWork(graph)
        self.graph = graph
        self._begun_s = begun_s
        self._next_s = begun_s + FIRST_S
        self._is_on = is_on
        self._regions = 0
        self._programs = 0
        self._cuts = 0

    def cut(self, cut: Cut) -> None:
        """The graph is cut, for the first time, or again since an op had no legal form."""
        self._regions = len(cut.regions)
        if self._cuts == 0:
            self.host_work.tell(cut)
        self._cuts += 1

    def lowered(self) -> None:
        """A program is made."""
        self._programs += 1
        self._say(f"{self._programs} of at most {max(self._regions, self._programs)} programs")

    def loaded(self, done: int, total: int) -> None:
        if _waiting.get() == _STEP:
            self._say(f"{done} of {total} programs loaded")

    def _say(self, how_far: str) -> None:
        now_s = time.monotonic()
        if self._is_on and now_s >= self._next_s:
            self._next_s = now_s + INTERVAL_S
            _print(self.graph, now_s - self._begun_s, how_far, _waiting.get())


@contextmanager
def tracing(is_on: bool) -> Iterator[threading.Timer]:
    """Inside, PyTorch traces the model and nothing of ours runs: a timer says so after five seconds. Whoever is called
    meanwhile cancels it."""
    timer = threading.Timer(FIRST_S, _print, ("model", FIRST_S, "PyTorch traces its forward and backward", _waiting.get()))
    timer.daemon = True
    if is_on:
        timer.start()
    try:
        yield timer
    finally:
        timer.cancel()


def _print(what: str, seconds: float, how_far: str, waiting: str) -> None:
    if sys.stderr is not None:
        text = f"torchane: compiling the {what}, {seconds:.0f} s so far: {how_far}. The {waiting} waits for it."
        print(text, file=sys.stderr, flush=True)
