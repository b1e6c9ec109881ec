"""A dispatch during which the host goes on working: a thread waits for the device, the caller's thread works.

    thread   ──► device.run ──────────────► joined
    caller   ──► steps that plan/overlap.py put beside this dispatch ──► joins, goes on
Nothing but the device's own run is in the other thread, which lives as long as that run: no queue, and nothing that a fork could miss. Whatever
happens, the dispatch is waited for before anybody else has its surfaces. Of several errors the one is raised that comes first in the plan, as
if nothing had overlapped.
"""

import threading
import time
from collections.abc import Callable, Sequence

from torchane.runtime.device import Buffer, Device, LoadedProgram

#: A step of the host's; whether the run goes on after it.
Work = Callable[[], bool]


class Beside:
    """Of one call of a plan."""

    def __init__(self, device: Device):
        self.device = device
        self._before: Sequence[Work] = ()
        self._after: Sequence[Work] = ()

    def next(self, before: Sequence[Work] = (), after: Sequence[Work] = ()) -> None:
        """What goes on beside the next run: steps that come before that dispatch in the plan, and steps that come behind it."""
        self._before, self._after = before, after

    def run(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> float | None:
        """As `Device.run`; the seconds on the device, where host work went on meanwhile."""
        before, after = self._before, self._after
        self.next()
        if not before and not after:
            self.device.run(program, inputs, outputs)
            return None
        dispatch = _Dispatch(lambda: self.device.run(program, inputs, outputs))
        try:
            dispatch.start()
        except RuntimeError:  # no thread is to be had, as when the interpreter ends: one after the other
            return _one_by_one(before, after, lambda: self.device.run(program, inputs, outputs))
        except BaseException:  # interrupted on the way
            dispatch.call_off()
            raise
        earlier, goes_on = _carried_out(before)
        later, _ = _carried_out(after) if goes_on else (None, False)
        interrupt = dispatch.wait()
        for error in (earlier, interrupt, dispatch.error, later):  # in the plan's order
            if isinstance(error, BaseException):
                raise error
        return dispatch.time_s


def _one_by_one(before: Sequence[Work], after: Sequence[Work], run: Callable[[], None]) -> None:
    if all(work() for work in before):
        run()
        all(work() for work in after)


def _carried_out(works: Sequence[Work]) -> tuple[BaseException | None, bool]:
    """What the first step that failed raised, and whether the run goes on."""
    try:
        return None, all(work() for work in works)
    except BaseException as error:
        return error, False


class _Dispatch(threading.Thread):
    """A run of a device in a thread of its own. error: what it raised. time_s: how long it took."""

    def __init__(self, run: Callable[[], None]):
        super().__init__(name="torchane-dispatch", daemon=True)
        self._run_device = run
        self._lock = threading.Lock()
        self._has_begun = self._is_off = False
        self._ended = threading.Event()  # not `join`: interrupted, Python 3.11's takes the thread for ended
        self.error: BaseException | None = None
        self.time_s = 0.0

    def run(self) -> None:
        with self._lock:
            if self._is_off:
                return
            self._has_begun = True
        start = time.perf_counter()
        try:
            self._run_device()
        except BaseException as error:
            self.error = error
        self.time_s = time.perf_counter() - start
        self._ended.set()

    def call_off(self) -> None:
        """It does not run; if it has begun, until it has ended."""
        with self._lock:
            self._is_off = not self._has_begun
        if self._has_begun:
            self.wait()

    def wait(self) -> BaseException | None:
        """Until it has ended; what interrupted the waiting meanwhile, as Ctrl-C does."""
        interrupt: BaseException | None = None
        while not self._ended.is_set():
            try:
                self._ended.wait()
            except BaseException as error:
                interrupt = interrupt or error
        return interrupt
