"""Files of a folder that may come from a stranger: read as bounded regular files, written whole or not at all.

    write: .NAME.partial (new, never through a link) ─► fsync ─► rename to NAME ─► fsync of the folder
    read:  is it a regular file? ─► is it within its limit? ─► open, look again, read

Whoever reads the name sees the old content or the new, at any moment of a crash. A failure names the file and leaves
the old content where it was. A name that is a link is replaced or removed itself; what it points to is never touched.
What a killed process leaves behind is `.NAME.partial`, which the next write of NAME replaces. All writing goes through
`os.open`, `os.write`, `os.fsync`, `os.replace` and `os.unlink`, where tests put failures.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from torchane.errors import RunFolderError

if sys.platform == "darwin":
    import fcntl

#: The largest JSON file that is read: tokenizers of 256,000 tokens have 35 MB.
LARGEST_JSON_BYTES = 256 << 20
_WRITE_BYTES = 16 << 20

ADVICE = {
    errno.ENOSPC: "The disk is full. Free some space",
    errno.EDQUOT: "Your disk quota is used up. Free some space",
    errno.EFBIG: "The file is larger than the system allows (ulimit -f). Raise that limit",
    errno.EACCES: "You may not write there. Change its permissions or choose another folder with --out",
    errno.EPERM: "You may not write there. Change its permissions or choose another folder with --out",
    errno.EROFS: "That file system is read-only. Choose another folder with --out",
    errno.ENOTDIR: "A part of the path is a file, not a folder. Choose another folder with --out",
    errno.EEXIST: "A file of that name is in the way. Choose another folder with --out",
    errno.EISDIR: "A folder of that name is in the way. Move it away",
    errno.ELOOP: "A link of that name is in the way. Remove it",
    errno.ENAMETOOLONG: "The name is longer than the file system allows. Choose another folder with --out",
}

_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)  # fmt: skip


class Writer(Protocol):
    """Takes bytes until all are written."""

    def __call__(self, data: bytes | memoryview) -> None: ...


def write_atomically(path: Path, write: Callable[[Writer], None]) -> None:
    """Calls write(writer) and puts what was written in place of `path`. Raises RunFolderError naming `path`."""
    partial = path.parent / f".{path.name}.partial"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            write(lambda data: write_all(descriptor, data))
            _sync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
        sync(path.parent)
    except OSError as error:
        try:
            os.unlink(partial)
        except FileNotFoundError:
            pass  # it was renamed, or never made
        except OSError as leftover:  # must not hide why the file could not be written
            error.add_note(f"{partial} is left behind: {leftover.strerror}")
        raise write_error(path, error) from error


def write_text(path: Path, text: str) -> None:
    """The whole text, as UTF-8 with newlines kept. Raises RunFolderError."""
    write_atomically(path, lambda writer: writer(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with a final newline; a float reads back as the same float. Raises RunFolderError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_text(path: Path, limit_bytes: int = LARGEST_JSON_BYTES) -> str:
    """The UTF-8 text of a regular file. Raises RunFolderError if it is missing, larger or something else."""
    try:
        with open_regular(path, limit_bytes) as file:
            return file.read(limit_bytes + 1).decode()
    except (OSError, ValueError) as error:
        raise read_error(path, error) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object that the file holds. Raises RunFolderError if it is missing or holds something else."""
    try:
        value = parse_json(read_text(path))
    except ValueError as error:
        raise read_error(path, error) from error
    if not isinstance(value, dict):
        raise read_error(path, ValueError(f"it holds a {type(value).__name__}, not an object"))
    return value


def parse_json(text: str) -> Any:
    """JSON without Python's extensions. Raises ValueError for those, and for nesting beyond Python's stack."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deep") from error


def json_digest(value: Any) -> str:
    """SHA-256 of the value as JSON: white space and the order of keys make no difference."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def open_regular(path: Path, limit_bytes: int) -> Any:
    """A binary file to read. Raises OSError, or ValueError where it is a pipe, a device, a folder or larger than that.

    A link is followed, as in Hugging Face's cache; where it leads to must be a regular file.
    """
    require_regular(os.stat(path), limit_bytes)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        require_regular(os.fstat(descriptor), limit_bytes)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def require_regular(info: os.stat_result, limit_bytes: int) -> None:
    """Raises ValueError, which says what it is instead, or how large."""
    if not stat.S_ISREG(info.st_mode):
        raise ValueError(f"it is {kind_of(info)}, not a file")
    if info.st_size > limit_bytes:
        raise ValueError(f"it has {info.st_size:,} bytes, and at most {limit_bytes:,} are read of such a file")


def kind_of(info: os.stat_result) -> str:
    """"a named pipe", "a folder", ...: what the path leads to where it is no regular file."""
    return next((name for test, name in _KINDS if test(info.st_mode)), "no regular file")


def open_to_append(path: Path) -> int:
    """A descriptor whose writes go to the end of a file of this folder alone. Raises OSError, or ValueError where the name
    is a link to elsewhere, a pipe or a device."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        require_regular(os.lstat(path), sys.maxsize)
    except FileNotFoundError:
        flags |= os.O_EXCL
    descriptor = os.open(path, flags, 0o666)
    info = os.fstat(descriptor)
    try:
        require_regular(info, sys.maxsize)
        if info.st_nlink != 1:
            raise ValueError("it is a hard link to a file that has other names; writing would change those too")
    except ValueError:
        os.close(descriptor)
        raise
    return descriptor


def make_folder(path: Path) -> None:
    """Makes the folder and those above it. Raises RunFolderError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def sync(path: Path) -> None:
    """Returns when the file's or folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """The same, of a file that was written before. Raises RunFolderError."""
    try:
        sync(path)
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: Exception) -> RunFolderError:
    """What happened, why, what to do, for a file or folder that could not be written."""
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    advice = ADVICE.get(getattr(error, "errno", None) or 0, "Check the disk and the folder")
    return RunFolderError(f"{path} could not be written: {reason}. {advice}; what was saved before is unharmed.")


def read_error(path: Path, error: Exception) -> RunFolderError:
    """What happened, why, what to do, for a file that should be there and whole."""
    if isinstance(error, FileNotFoundError):
        return RunFolderError(
            f"{path} does not exist, and a run folder has one. Give the folder that `torchane train` wrote; "
            "if it is that, the file was removed: copy it back from a backup or train again."
        )
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return RunFolderError(
        f"{path} cannot be read: {reason}. It is damaged or not ours: copy it back from a backup or train again."
    )


def whole_lines(file: Any, limit_bytes: int) -> Iterator[bytes | None]:
    """The lines of a binary file without their ends; None for one that is longer than the limit. What follows the last
    line end is no whole line."""
    while line := file.readline(limit_bytes):
        if line.endswith(b"\n"):
            yield line[:-1]
        elif len(line) == limit_bytes:
            while line and not line.endswith(b"\n"):
                line = file.readline(limit_bytes)
            yield None


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Until all of it is written. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest[:_WRITE_BYTES]) :]


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync alone leaves data in the drive's cache there
    else:
        os.fsync(descriptor)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
