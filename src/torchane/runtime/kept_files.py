"""Folders of files that one process leaves for others: what was lowered, what was planned.

    root/ 0700
      <digest of all that makes them>/<key><suffix>      written whole or not at all

The folder is the version: torchane's own source files, PyTorch and NumPy. A file that is damaged is left out, said, and removed. Files of
other versions are dead and go first when room is needed. Several processes may use the folder: what one removes, another makes anew.
"""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np

from torchane.errors import ParseError, TorchaneWarning

T = TypeVar("T")

#: What is left when there is too much, so that not every file that is written looks through the folder.
_LEFT_AFTER = 0.8


@cache
def version() -> str:
    """A digest of what makes the files: a line of ours that changed, or another PyTorch, makes others. PyTorch is not imported for it."""
    digest = hashlib.sha256(f"torch {_torch()}, numpy {np.__version__}\n".encode())
    for path, data in sorted((str(path), path.read_bytes()) for path in _sources()):
        digest.update(f"{path} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:32]


def _torch() -> str:
    """What PyTorch's own file says of its version and its build; where it lies."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return "none"
    return f"{spec.origin} {(Path(spec.origin).parent / 'version.py').read_text(encoding='utf-8')}"


def _sources() -> Iterator[Path]:
    """Of the whole package: a list of those that matter would miss one some day."""
    for path in Path(__file__).parents[1].rglob("*"):
        if path.suffix in (".py", ".toml"):
            yield path


@dataclass(frozen=True)
class Entry:
    """A file of the cache. used_s: when it was last used, seconds since 1970."""

    path: Path
    size_bytes: int
    used_s: float

    @property
    def is_current(self) -> bool:
        return self.path.parent.name == version()


class KeptFiles:
    """One folder. what: of what it is, in words ("lowered programs"); instead: what is done where a file cannot be used ("the program is lowered
    anew"). `most_bytes`: what it may hold."""

    def __init__(self, root: Path, suffix: str, most_bytes: int, what: str, instead: str):
        self.root = root
        self.most_bytes = most_bytes
        self._suffix = suffix
        self._what, self._instead = what, instead
        self._size_bytes: int | None = None  # as far as this process knows; others write too
        self._is_off = False

    def get(self, key: str, parse: Callable[[bytes], T]) -> T | None:
        """What `parse` makes of the file of that key, if it lies there whole. parse: raises ParseError for what is not as it was written."""
        if self._is_off:
            return None
        path = self._path(key)
        try:
            data = self._read(path)
            if data is None:
                return None
            found = parse(data)
        except ParseError as error:
            removed = "It was removed" if _removed(path) else "It could not be removed"
            _say(f"{path} cannot be used: {error} {removed}, and {self._instead}.")
            return None
        except OSError as error:
            self._give_up("read", error)
            return None
        with suppress(OSError):  # it may have been removed, and may lie on a disk that nothing can be written to
            os.utime(path)
        return found

    def put(self, key: str, data: bytes) -> None:
        """Keeps a file. Where the folder cannot be written, that is said once and nothing is kept."""
        if self._is_off or len(data) > self.most_bytes // 8:
            return  # a large one would drive out all others
        try:
            self._write(self._path(key), data)
            self._make_room(len(data))
        except OSError as error:
            self._give_up("written", error)

    def entries(self) -> list[Entry]:
        """Every file, of every version, the one used longest ago first."""
        return sorted(self._entries(), key=lambda entry: entry.used_s)

    def clear(self) -> int:
        """Removes every file; how many. A process that is compiling loses time by it, nothing else."""
        return sum(_removed(entry.path) for entry in self.entries())

    def _path(self, key: str) -> Path:
        return self.root / version() / f"{key}{self._suffix}"

    def _read(self, path: Path) -> bytes | None:
        """None where there is nothing. Raises ParseError for what is another user's."""
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with os.fdopen(file, "rb") as opened:
            if os.fstat(file).st_uid != os.geteuid():
                raise ParseError("it belongs to another user.")
            return opened.read()

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.root, path.parent):
            folder.chmod(0o700)  # a parent that mkdir made has the process's own mode
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as opened:
                opened.write(data)
            with suppress(FileNotFoundError):  # another process cleared the folder
                os.replace(part, path)
        except BaseException:
            _removed(Path(part))
            raise

    def _make_room(self, added_bytes: int) -> None:
        if self._size_bytes is None:
            self._size_bytes = sum(entry.size_bytes for entry in self._entries())
        else:
            self._size_bytes += added_bytes
        if self._size_bytes <= self.most_bytes:
            return
        found = sorted(self._entries(), key=lambda entry: (entry.is_current, entry.used_s))
        total = sum(entry.size_bytes for entry in found)
        for entry in found:
            if total <= _LEFT_AFTER * self.most_bytes:
                break
            total -= entry.size_bytes if _removed(entry.path) else 0
        self._size_bytes = total

    def _entries(self) -> Iterator[Entry]:
        for path in self.root.glob("*/*"):
            with suppress(FileNotFoundError):  # another process removes too
                found = path.lstat()
                yield Entry(path, found.st_size, found.st_mtime)

    def _give_up(self, what: str, error: OSError) -> None:
        self._is_off = True
        _say(
            f"The folder of {self._what}, {self.root}, could not be {what}: {error.strerror or error}. Every process makes its own "
            "anew. Make room, or let TORCHANE_CACHE name a folder that can be written."
        )


def _removed(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _say(text: str) -> None:
    warnings.warn(text, TorchaneWarning, stacklevel=2)
