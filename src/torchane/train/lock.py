"""One process at a time writes into a run folder: it holds a lock on `.lock`, which says who it is.

The system frees the lock when its process ends, however that comes, so a file that a killed process left behind is
no lock. The file goes when the lock is given back; whoever waited with the old file in hand finds out and opens the new one.
"""

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import stat
import sys
import warnings
from pathlib import Path
from types import TracebackType
from typing import Self

from torchane.errors import RunFolderError, TorchaneWarning
from torchane.models.files import kind_of, write_all, write_error

LOCK = ".lock"
_LARGEST_NOTE_BYTES = 1 << 16
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class RunLock:
    """`with RunLock(folder):` Raises RunFolderError, which names the process that has it, or what is in the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        while self._descriptor is None:
            self._descriptor = self._take()
        try:
            os.ftruncate(self._descriptor, 0)
            write_all(self._descriptor, json.dumps(_myself()).encode())
        except OSError as error:
            self._give_back()
            raise write_error(self.folder / LOCK, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _give_back(self) -> None:
        assert self._descriptor is not None
        with contextlib.suppress(FileNotFoundError):  # the user removed the folder meanwhile
            os.unlink(self.folder / LOCK)
        os.close(self._descriptor)
        self._descriptor = None

    def _take(self) -> int | None:
        """The locked file; None where it was given back and removed just now, so that a new one is needed."""
        path = self.folder / LOCK
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise write_error(path, error) from error
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
                what = kind_of(info) if not stat.S_ISREG(info.st_mode) else "a hard link to a file elsewhere"
                raise RunFolderError(f"{path} is {what}, and a run keeps a file of its own there. Remove it.")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(info, path):
                return descriptor
        except BlockingIOError as error:
            note = _read_note(descriptor)
            os.close(descriptor)
            raise RunFolderError(
                f"{self.folder} is in use by {note}, and two processes would spoil each other's checkpoints and metrics. "
                "Wait until it has ended, or stop it: Ctrl-C there saves and ends."
            ) from error
        except OSError as error:
            if error.errno in _CANNOT_LOCK:
                warnings.warn(
                    f"{path}: this file system has no locks ({error.strerror}), so nothing notices a second process that "
                    "resumes the same run. Start none.", TorchaneWarning, stacklevel=2,
                )  # fmt: skip
                return descriptor
            os.close(descriptor)
            raise write_error(path, error) from error
        except RunFolderError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None


def _is_at(info: os.stat_result, path: Path) -> bool:
    try:
        now = os.lstat(path)
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (info.st_dev, info.st_ino)


def _myself() -> dict[str, object]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": command[:4096]}


def _read_note(descriptor: int) -> str:
    try:
        note = json.loads(os.pread(descriptor, _LARGEST_NOTE_BYTES, 0))
        return f"process {int(note['pid'])} on {str(note['host'])[:64]} ({str(note['command'])[:200]})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"  # it has only just begun
