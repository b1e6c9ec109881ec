"""Folders of programs on disk, from which the framework compiles and by which it finds what is compiled.

    root/ 0700
      <build of the system>/<key>/   model.mil, weights/..., lock      one folder per program, written whole or not at all
      hangs.json

The compiled form itself is the framework's and lies in its own cache; a folder that is gone costs a compilation, no more.
Folders of other builds are dead (the system drops their compiled form) and go first when room is needed.
"""

import errno
import fcntl
import os
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torchane.errors import DeviceError
from torchane.mil.blobs import resolve
from torchane.runtime.ane.source import Source

MOST_BYTES = 4 << 30
#: A compile that meets a full disk has left damaged files and reported success, so there must be room beforehand: the
#: service's own copies of the weights, and some.
ROOM_FACTOR, ROOM_BYTES = 4, 256 << 20
#: Folders that are being written; what a process that died left of them is removed after so long.
NEW, LEFT_OVER_S = ".new-", 3600.0
#: So much of a file is read at once where it is compared.
BLOCK_BYTES = 16 << 20
#: Another process may remove a folder between its writing and its locking: so often it is written again.
MOST_WRITES = 10


def users_folder() -> Path:
    """Where this user's caches lie. TORCHANE_CACHE names another folder."""
    if named := os.environ.get("TORCHANE_CACHE"):
        return Path(named).expanduser().absolute()  # the framework and later processes have their own working folder
    caches = Path.home() / "Library" / "Caches" if sys.platform == "darwin" else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches.absolute() / "torchane"


def default_root() -> Path:
    """The folder of compiled programs among the user's caches."""
    return users_folder() / "ane"


@dataclass(frozen=True)
class Entry:
    """A program in the cache. used_s: when it was last used, seconds since 1970."""

    path: Path
    build: str
    size_bytes: int
    used_s: float


class CompileCache:
    """The folders of one system. A folder in use is locked against eviction by any process."""

    def __init__(self, root: Path, build: str, most_bytes: int = MOST_BYTES):
        self.root = root
        self.build = "".join(c if c.isalnum() or c in "._-" else "-" for c in build) or "unknown"
        self.most_bytes = most_bytes
        self._locks: dict[Path, list[int]] = {}  # open files, one per user: two equal programs share a folder
        self._read: set[Path] = set()  # folders whose contents this process has compared or written
        weakref.finalize(self, _close_all, self._locks)

    def folder(self, key: str) -> Path:
        return self.root / self.build / key[:40]

    def prepare(self, source: Source) -> Path:
        """The folder of a program, its files in place, locked. Raises DeviceError for a full or read-only folder."""
        folder = self.folder(source.key)
        try:
            self._make_private(folder.parent)
            is_new = self._lock_written(folder, source)
            if not is_new and not _is_whole(folder, source, folder not in self._read):  # a disk that was full, a machine that lost power
                self.rewrite(source, folder)
            self._read.add(folder)
            os.utime(folder)
            if is_new:
                self.evict()
        except OSError as error:
            raise self._unusable(error) from error
        return folder

    def require_usable(self) -> None:
        """Raises DeviceError, as `prepare` would, before anything else is tried."""
        try:
            self._make_private(self.root)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> DeviceError:
        return DeviceError(
            f"The folder for compiled programs, {self.root}, cannot be used: {error.strerror or error}. Make room, or let "
            "TORCHANE_CACHE name a folder that can be written."
        )

    def rewrite(self, source: Source, folder: Path) -> None:
        """Writes the files of a program into a folder that the framework has chosen itself, or anew into its own."""
        for path, data in {"model.mil": source.text.encode(), **source.weights}.items():
            target = folder / path if path == "model.mil" else resolve(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            target.write_bytes(data)

    def release(self, source: Source) -> None:
        """Lets a folder be evicted again."""
        if locks := self._locks.get(self.folder(source.key)):
            os.close(locks.pop())

    def entries(self) -> list[Entry]:
        """Every program of every build, the one used longest ago first."""
        return sorted(self._entries(), key=lambda entry: entry.used_s)

    def evict(self) -> int:
        """Removes what is too much: other builds' programs, then those used longest ago. The bytes that were freed."""
        found = sorted(self.entries(), key=lambda entry: (entry.build == self.build, entry.used_s))
        total, freed = sum(entry.size_bytes for entry in found), 0
        for entry in found:
            if total - freed <= self.most_bytes:
                break
            freed += entry.size_bytes if self._remove(entry.path) else 0
        return freed

    def clear(self) -> int:
        """Removes every program that no process uses; how many."""
        return sum(self._remove(entry.path) for entry in self.entries())

    def _entries(self) -> Iterator[Entry]:
        for path in self.root.glob("*/*/"):
            with suppress(FileNotFoundError):  # another process evicts too
                used_s = path.stat().st_mtime
                if path.name.startswith(NEW) and time.time() - used_s < LEFT_OVER_S:
                    continue
                size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                yield Entry(path, path.parent.name, size, used_s)

    def _make_private(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root.chmod(0o700)  # a parent that mkdir made has the process's own mode

    def _lock_written(self, folder: Path, source: Source) -> bool:
        """Whether it had to be written."""
        is_new = False
        for _ in range(MOST_WRITES):
            if not (folder / "model.mil").is_file():
                is_new = True
                self._require_room(sum(map(len, source.weights.values())) + len(source.text))
                self._write(folder, source)
            if self._lock(folder):
                return is_new
        raise OSError(f"{folder} is removed by other processes as often as it is written")

    def _write(self, folder: Path, source: Source) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=NEW) as new:
            part = Path(new) / "program"
            part.mkdir(mode=0o700)
            self.rewrite(source, part)
            try:
                part.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if not (folder / "model.mil").is_file():  # what an interrupted eviction left; else another process was faster
                    self._remove(folder)

    def _require_room(self, size_bytes: int) -> None:
        free, needed = shutil.disk_usage(self.root).free, ROOM_FACTOR * size_bytes + ROOM_BYTES
        if free < needed:
            raise OSError(f"the disk has {free >> 20:,} MiB free and compiling needs {needed >> 20:,} MiB")

    def _lock(self, folder: Path) -> bool:
        """False where another process has removed the folder meanwhile."""
        with suppress(FileNotFoundError):
            lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if (folder / "model.mil").is_file() and os.path.samestat(os.fstat(lock), (folder / "lock").stat()):
                    self._locks.setdefault(folder, []).append(lock)
                    return True
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)
        return False

    def _remove(self, folder: Path) -> bool:
        """False where some process uses it."""
        try:
            with (folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (folder / "model.mil").unlink(missing_ok=True)  # from here on nobody takes it for whole
                shutil.rmtree(folder)
        except OSError:
            return False
        return True


def _is_whole(folder: Path, source: Source, reads: bool) -> bool:
    """Whether its text is the program's and its weight files are as long as they should be. reads: and hold what they should."""
    if (folder / "model.mil").read_bytes() != source.text.encode():
        return False
    files = ((resolve(folder, path), data) for path, data in source.weights.items())
    return all(file.is_file() and file.stat().st_size == len(data) and (not reads or _holds(file, data)) for file, data in files)


def _holds(file: Path, data: bytes) -> bool:
    known = memoryview(data)
    with file.open("rb") as opened:
        return all(opened.read(BLOCK_BYTES) == known[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES))


def _close_all(locks: dict[Path, list[int]]) -> None:
    for lock in (lock for open_files in locks.values() for lock in open_files):
        os.close(lock)
    locks.clear()


def describe(entries: list[Entry]) -> Mapping[str, tuple[int, int]]:
    """Programs and bytes by build of the system."""
    found: dict[str, tuple[int, int]] = {}
    for entry in entries:
        count, size = found.get(entry.build, (0, 0))
        found[entry.build] = count + 1, size + entry.size_bytes
    return found
