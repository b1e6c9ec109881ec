"""Standard output and error of the command: whole, or an error that says so; on a terminal, text and nothing else.

A terminal obeys control bytes: a sample, a name in a damaged file or a path could move the cursor, set the title or answer for
the user. They are shown as \\x1b. What cannot be written (a full disk, a closed pipe, a closed stream) raises LostOutput, where
Python would print a traceback at the very end and lose the exit code.
"""

import io
import os
import re
import sys
from typing import Any, TextIO

from torchane.errors import TorchaneError

#: C0 without tab and line feed, DEL, C1, and what turns the direction of the text around it.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class LostOutput(TorchaneError):
    """Standard output cannot be written. `is_closed`: nobody reads it any more."""

    def __init__(self, error: OSError, consequence: str = "") -> None:
        super().__init__(f"Standard output could not be written: {error.strerror or error}. {consequence}".strip())
        self.error = error
        self.is_closed = isinstance(error, BrokenPipeError)


def printable(text: str) -> str:
    """The text with control characters spelled out; lines and tabs stay."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class Stream(io.TextIOWrapper):
    """A standard stream. Characters that it cannot spell are escaped. `is_needed`: what cannot be written is an error."""

    def __init__(self, stream: TextIO, *, is_needed: bool) -> None:
        # An ASCII terminal is nearly always a locale that was not set, and click writes UTF-8 then too.
        encoding = "utf-8" if stream.encoding.lower() in ("ascii", "ansi_x3.4-1968", "us-ascii") else stream.encoding
        super().__init__(stream.detach(), encoding=encoding, errors="backslashreplace", line_buffering=True)  # type: ignore[attr-defined]
        self._is_needed = is_needed
        self._is_terminal = self.isatty()

    def write(self, text: str) -> int:
        return self.write_as_it_is(printable(text) if self._is_terminal else text)

    def write_as_it_is(self, text: str) -> int:
        """With what moves the cursor: for who draws on the terminal."""
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """What is still buffered goes nowhere, or Python would try again when it ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        if self._is_needed:
            raise LostOutput(error) from error


class Drawing:
    """A stream as a library sees it that draws on the terminal."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.write = getattr(stream, "write_as_it_is", stream.write)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_standard_streams() -> None:
    """Puts ours in place of Python's. A closed one is opened first, or the next file would get its number: standard output so
    that writing fails, standard error so that it does not.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest number that is free, which is this one
    if sys.stdin is None:
        sys.stdin = open(0)  # noqa: SIM115  (open as long as the process)
    sys.stdout = Stream(sys.stdout or open(1, "w"), is_needed=True)  # noqa: SIM115
    sys.stderr = Stream(sys.stderr or open(2, "w"), is_needed=False)  # noqa: SIM115
