"""A dispatch that never returns cannot be cancelled: the process ends, having said which program it was.

    begin(name, key, limit_s) ... end()        a thread looks at the clock; past the limit: record, message, exit code 75
    runs(limit_s)                              from now on it looks at what the bridge says of its runs, too

The record (hangs.json beside the compile cache) counts by program; the device takes a program that hung three times to
the twin. `torchane train` writes checkpoints, so `--resume` goes on from the last one.
"""

import fcntl
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from torchane import native

#: The process's exit code: EX_TEMPFAIL of sysexits.h, "try again".
EXIT_CODE = 75
DISPATCH_S = 30.0
#: Compiling one large convolution took more than 200 s (reported); loading after an update of macOS takes minutes.
COMPILE_S = 900.0
#: How often the clock is looked at, at least.
LOOK_S = 1.0
#: From this many hangs on a program is left to the twin.
MOST_HANGS = 3


class Watchdog:
    """expire: called from its thread with the message; None ends the process. owner: marks the runs that are its to look after."""

    _owners = itertools.count(1)

    def __init__(self, record: Path | None, expire: Callable[[str], None] | None = None):
        self.record = record
        self._expire = expire or _end_process
        self.owner = next(Watchdog._owners)
        self._current: tuple[str, str, float, object] | None = None  # name, key, limit, number
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._shortest_s = DISPATCH_S

    def begin(self, name: str, key: str, limit_s: float) -> None:
        self.runs(limit_s)
        self._current = (name, key, limit_s, object())

    def runs(self, limit_s: float) -> None:
        self._shortest_s = min(self._shortest_s, limit_s)
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="torchane-watchdog", daemon=True)
            self._thread.start()

    def end(self) -> None:
        self._current = None

    def close(self) -> None:
        self._closed.set()

    def hangs(self, key: str) -> int:
        """How often a program has hung on this machine."""
        return int(_read(self.record).get(key, {}).get("count", 0))  # type: ignore[call-overload]

    def _watch(self) -> None:
        """Adds up the time between its looks, and of each no more than twice what it meant to wait: while the machine slept or the
        process was stopped (Ctrl-Z), the engine's answer could not arrive either."""
        serial: object = None
        waited_s, before_s = 0.0, time.monotonic()
        while not self._closed.wait(tick_s := min(LOOK_S, self._shortest_s / 10)):
            now_s = time.monotonic()
            passed_s, before_s = min(now_s - before_s, 2 * tick_s), now_s
            under_way = self._under_way()
            if under_way is None or under_way[3] != serial:
                serial, waited_s = under_way[3] if under_way else None, 0.0
                continue
            waited_s += passed_s
            if waited_s > under_way[2]:
                self._current = serial = None
                self._expire(self._recorded(*under_way[:3], waited_s))

    def _under_way(self) -> tuple[str, str, float, object] | None:
        """Name, key, limit and number."""
        if (current := self._current) is not None:
            return current
        return native.apple.running(self.owner) if native.is_built() else None

    def _recorded(self, name: str, key: str, limit_s: float, for_s: float) -> str:
        count = 1
        if self.record is not None:
            with _alone(self.record):
                known = _read(self.record)
                count += int(known.get(key, {}).get("count", 0))
                known[key] = {"name": name, "count": count, "limit_s": limit_s}
                _write(self.record, known)
        then = "From now on the twin computes it." if count >= MOST_HANGS else "Start again, a training run with --resume."
        return (
            f"DeviceError: {name}: the Neural Engine has not answered for {for_s:.0f} s, and a dispatch cannot "
            f"be cancelled, so this process ends. It is hang {count} of this program on this machine. {then}"
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two processes that hang at once both count. Where no lock can be had the record is written all the same."""
    with ExitStack() as held:
        with suppress(OSError):
            fcntl.flock(held.enter_context(path.with_suffix(".lock").open("w")), fcntl.LOCK_EX)
        yield


def _read(path: Path | None) -> dict[str, dict[str, object]]:
    """What in it is a record of hangs; the rest counts nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {key: one for key, one in entries if isinstance(one, dict) and type(one.get("count")) is int}


def _write(path: Path, values: object) -> None:
    try:
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(values, indent=1), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        print(f"The hang could not be recorded in {path}: {error}.", file=sys.stderr)


def _end_process(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
