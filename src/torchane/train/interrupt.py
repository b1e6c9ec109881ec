"""Ctrl-C ends a run between two steps, with a checkpoint; a second Ctrl-C ends it at once."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Within `with StopRequest(message) as stop`, the first signal makes `stop()` true and writes the message to
    standard error. The signals' own handlers are back from the first signal on. Main thread only.
    """

    def __init__(self, message: str) -> None:
        self._message = message.encode()
        self._asked = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def __call__(self) -> bool:
        return self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._restore()
        os.write(2, self._message)  # the buffered stream may be in the middle of a write

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
