"""Files read whole: regular ones only, so that no pipe or device in a file's place hangs or fills the memory."""

import os
import stat
from pathlib import Path

from torchane.errors import ParseError

#: No protobuf is larger. Texts are not either: weights lie in files of their own, which are mapped and not read.
MOST_BYTES = 1 << 31


def read_whole(path: Path, what: str) -> bytes:
    """The bytes of a file. `what` names it in errors: `the model`. Raises ParseError where it cannot be read
    or is far too large."""
    try:
        # Without O_NONBLOCK a pipe that nobody writes to is waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ParseError(f"{path}: {what} cannot be read: it is no regular file.")
            if status.st_size > MOST_BYTES:
                raise ParseError(f"{path}: {what} has {status.st_size:,} bytes; the most that is read is {MOST_BYTES:,}.")
            return file.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ParseError(f"{path}: {what} cannot be read: {reason or error}.") from error
