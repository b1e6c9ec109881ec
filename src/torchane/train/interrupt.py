"""Ctrl-C ends a run between two steps, with a checkpoint; a second Ctrl-C ends it at once."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Within `with StopRequest(said) as stop`, the first signal makes `stop()` true and calls `said`.
    The signals' own handlers are back from the first signal on. Main thread only.
    """

    def __init__(self, said: Callable[[], None]) -> None:
        self._said = said
        self._asked = False
        self._handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        self._handlers = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def __call__(self) -> bool:
        return self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._restore()
        self._said()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
