"""Runs that were submitted to a device: one worker carries them out in order.

    submit ──► queue ──► the device's `run`, in the worker ──► wait
What is submitted behind a run that failed is not carried out: it may read what that run was to write. Waiting for the failed run, or
another call of `run`, raises its error; from then on the device takes new ones.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from torchane.errors import DeviceError
from torchane.runtime.device import Buffer, LoadedProgram, Submitted


class Submissions:
    """Of one device. is_idle: nothing waits, and nothing has failed that nobody was told of."""

    def __init__(self, run: Callable[[LoadedProgram, Sequence[Buffer], Sequence[Buffer]], None]):
        self._run = run
        self._worker: ThreadPoolExecutor | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._pending: list[Submitted] = []
        self._failed: tuple[str, BaseException] | None = None
        self.is_idle = True

    def submit(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> Submitted:
        with self._lock:
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, "torchane-device")
            self.is_idle = False
            made = self._worker.submit(self._act, program, tuple(inputs), tuple(outputs))
            self._pending.append(made)
            return made

    def _act(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> None:
        self._thread = threading.current_thread()
        if self._failed is not None:
            name, error = self._failed
            raise DeviceError(f"{program.name}: it was not run, since {name}, which was submitted before it, failed: {error}") from error
        try:
            self._run(program, inputs, outputs)
        except BaseException as error:
            self._failed = program.name, error
            raise

    def wait(self, submitted: Submitted) -> None:
        error = submitted.exception()
        if error is not None:
            self._settle()
            raise error
        with self._lock:
            self._pending = [one for one in self._pending if not one.done()]
            self.is_idle = not self._pending and self._failed is None

    def drain(self) -> None:
        """Before a run that was not submitted: waits for all that were, and raises what nobody was told of."""
        if threading.current_thread() is self._thread:  # the worker's own run
            return
        failed = self._settle()
        if failed is not None:
            raise failed[1]

    def _settle(self) -> tuple[str, BaseException] | None:
        wait(self._pending)
        with self._lock:
            self._pending = [one for one in self._pending if not one.done()]
            failed, self._failed = self._failed, None
            self.is_idle = not self._pending
            return failed
