"""Files read whole: regular ones only, so that no pipe or device in a file's place hangs or fills the memory."""

import os
import stat
from pathlib import Path

from torchane.errors import ParseError


def read_whole(path: Path, what: str) -> bytes:
    """The bytes of a file. `what` names it in errors: `the model`. Raises ParseError where it cannot be read."""
    try:
        # Without O_NONBLOCK a pipe that nobody writes to is waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ParseError(f"{path}: {what} cannot be read: it is no regular file.")
            return file.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ParseError(f"{path}: {what} cannot be read: {reason or error}.") from error
