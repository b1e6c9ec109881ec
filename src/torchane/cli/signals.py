"""How a signal ends a command: with one line and the exit code 128 + its number, never with a traceback.

    while importing   at once: the code of a package that is half imported may catch the exception and go on without a part
    later             as an exception, so that what is open is closed and an empty run folder goes
    while training    between two steps, with a checkpoint (train/interrupt.py)
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

from torchane.interpreter import importing

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal other than SIGINT, for which Python raises KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


#: The process was started for one command, so that what it imports stays.
_owned = False


def own_process() -> None:
    """Says so."""
    global _owned
    _owned = True


def load(name: str) -> Any:
    """The module of that name. A signal during its import ends the process."""
    with _handling(end_at_once), importing(owned=_owned):
        return import_module(name)


@contextmanager
def raising() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise Stopped, as SIGINT raises KeyboardInterrupt."""
    with _handling(_raise, SIGNALS[1:]):
        yield


def end_at_once(number: int, frame: FrameType | None) -> None:
    """A handler."""
    try:
        os.write(2, b"Stopped.\n")
    finally:
        os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def _handling(handler: Any, numbers: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[None]:
    """What the caller ignores stays ignored (nohup, a job in the background of a script)."""
    try:
        before = {n: signal.signal(n, handler) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    except ValueError:  # not the main thread, which alone receives signals
        before = {}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)
