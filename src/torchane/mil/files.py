"""Files read whole: regular ones only, so that no pipe or device in a file's place hangs or fills the memory.

Repositories keep large files elsewhere and a few lines of text in their place, which `stand_in` knows.
Source: git-lfs, docs/spec.md; git-annex, internals/pointer_file.
"""

import os
import re
import stat
from pathlib import Path

from torchane.errors import ParseError

#: No protobuf is larger. Texts are not either: weights lie in files of their own, which are mapped and not read.
MOST_BYTES = 1 << 31


_LFS = re.compile(rb"version https://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/v\d+\r?\n")
_LFS_SIZE = re.compile(rb"^size (\d{1,20})\r?$", re.MULTILINE)
_ANNEX = re.compile(rb"/annex/objects/\S+\s*\Z")

#: No such text is longer.
LONGEST_STAND_IN = 1024


def stand_in(head: bytes) -> str | None:
    """What the first bytes of a file say if they stand in the place of another one, in words; None for any other file."""
    if _LFS.match(head):
        size = _LFS_SIZE.search(head[:LONGEST_STAND_IN])
        of = f" of {int(size[1]):,} bytes" if size else ""
        return f"this is a Git LFS pointer: the file{of} that it stands for was not fetched. Run git lfs pull"
    if len(head) < LONGEST_STAND_IN and _ANNEX.match(head):
        return "this is a git-annex pointer: the file that it stands for was not fetched. Run git annex get"
    return None


def require_fetched(path: str | os.PathLike[str], head: bytes) -> None:
    """Raises ParseError where the first bytes of a file are those of a pointer to another one."""
    said = stand_in(head)
    if said is not None:
        raise ParseError(f"{path}: {said} in its repository.")


def read_whole(path: str | os.PathLike[str], what: str) -> bytes:
    """The bytes of a file. `what` names it in errors: `the model`. Raises ParseError where it cannot be read,
    is far too large, or holds a pointer only (Git LFS)."""
    path = Path(path)
    try:
        # Without O_NONBLOCK a pipe that nobody writes to is waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ParseError(f"{path}: {what} cannot be read: it is no regular file.")
            if status.st_size > MOST_BYTES:
                raise ParseError(f"{path}: {what} has {status.st_size:,} bytes; the most that is read is {MOST_BYTES:,}.")
            data = file.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ParseError(f"{path}: {what} cannot be read: {reason or error}.") from error
    require_fetched(path, data[:LONGEST_STAND_IN])
    return data
