"""Ctrl-C ends a run between two steps, with a checkpoint; a second Ctrl-C ends it at once. So do the other signals that a
terminal, a system that shuts down or a batch queue sends before it kills. A signal that the caller ignores (nohup, a job in the
background of a script) stays ignored.
"""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Within `with StopRequest(message) as stop`, the first signal makes `stop()` true and writes the message to
    standard error; `stop.signal` is its number. The signals' own handlers are back from the first signal on. Main thread only.
    """

    def __init__(self, message: str) -> None:
        self._message = message.encode()
        self._handlers: dict[signal.Signals, Any] = {}
        self.signal: int | None = None

    def __enter__(self) -> Self:
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._ask) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def __call__(self) -> bool:
        return self.signal is not None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        try:
            os.write(2, self._message)  # the buffered stream may be in the middle of a write
        except OSError:
            pass  # the terminal is gone, and nobody reads the message

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
