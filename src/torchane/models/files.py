"""Files that are whole or absent: a temporary file, synced to the disk, then renamed over the old one.

    write(.partial/name) ─► fsync ─► rename to name ─► fsync of the folder

Whoever reads the name sees the old content or the new, at any moment of a crash. A failure names the
file and leaves the old content where it was. What a killed process leaves behind lies in `.partial`,
which the next write into the folder clears.
"""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from torchane.errors import RunFolderError

if sys.platform == "darwin":
    import fcntl

PARTIAL = ".partial"

ADVICE = {
    errno.ENOSPC: "The disk is full. Free some space",
    errno.EDQUOT: "Your disk quota is used up. Free some space",
    errno.EFBIG: "The file is larger than the system allows (ulimit -f). Raise that limit",
    errno.EACCES: "You may not write there. Change its permissions or choose another folder with --out",
    errno.EPERM: "You may not write there. Change its permissions or choose another folder with --out",
    errno.EROFS: "That file system is read-only. Choose another folder with --out",
    errno.ENOTDIR: "A part of the path is a file, not a folder. Choose another folder with --out",
    errno.EEXIST: "A file of that name is in the way. Choose another folder with --out",
}


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls write(temporary path) and puts the result in place of `path`. Raises RunFolderError naming `path`."""
    partial = path.parent / PARTIAL
    try:
        clear(partial)
        partial.mkdir()
        (partial / path.name).touch()
        mode = (partial / path.name).stat().st_mode
        write(partial / path.name)
        (partial / path.name).chmod(mode)  # safetensors makes files that only their owner may read
        sync(partial / path.name)
        os.replace(partial / path.name, path)
        partial.rmdir()
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        try:
            clear(partial)
        except OSError as leftover:  # must not hide why the file could not be written
            error.add_note(f"{partial} is left behind: {leftover.strerror}")
        raise write_error(path, error) from error


def write_text(path: Path, text: str) -> None:
    """The whole text, as UTF-8 with newlines kept. Raises RunFolderError."""
    write_atomically(path, lambda temporary: _write_bytes(temporary, text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with a final newline; a float reads back as the same float. Raises RunFolderError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object that the file holds. Raises RunFolderError if it is missing or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise read_error(path, error) from error
    if not isinstance(value, dict):
        raise read_error(path, ValueError(f"it holds a {type(value).__name__}, not an object"))
    return value


def make_folder(path: Path) -> None:
    """Makes the folder and those above it. Raises RunFolderError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def sync(path: Path) -> None:
    """Returns when the file's or folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if sys.platform == "darwin":
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync alone leaves data in the drive's cache there
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: Exception) -> RunFolderError:
    """What happened, why, what to do, for a file or folder that could not be written."""
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    advice = ADVICE.get(_errno(error), "Check the disk and the folder")
    return RunFolderError(f"{path} could not be written: {reason}. {advice}; what was saved before is unharmed.")


def read_error(path: Path, error: Exception) -> RunFolderError:
    """What happened, why, what to do, for a file that should be there and whole."""
    if isinstance(error, FileNotFoundError):
        return RunFolderError(
            f"{path} does not exist, and a run folder has one. Give the folder that `torchane train` wrote; "
            "if it is that, the file was removed: copy it back from a backup or train again."
        )
    return RunFolderError(
        f"{path} cannot be read: {error}. It is damaged or not ours: copy it back from a backup or train again."
    )


def clear(partial: Path) -> None:
    """Removes the folder of half-written files, if there is one."""
    if partial.is_dir():
        for leftover in partial.iterdir():
            leftover.unlink()
        partial.rmdir()


def _errno(error: Exception) -> int | None:
    """The system's number for the error; safetensors puts it into its text, as `(os error 28)`."""
    if isinstance(error, OSError):
        return error.errno
    text = str(error)
    return next((number for number in ADVICE if f"(os error {number})" in text or f"code: {number}," in text), None)


def _write_bytes(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
