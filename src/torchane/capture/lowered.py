"""What regions were lowered to, on disk: a second process that compiles the same network does not lower it again.

A key is the structure of a region, the chip and whether ranges are controlled. The folder and its rules: runtime/kept_files.py.
"""

import hashlib
from pathlib import Path

from torchane.plan import ProgramSpec
from torchane.plan.stored import from_bytes, to_bytes
from torchane.runtime.ane.cache import users_folder
from torchane.runtime.kept_files import Entry, KeptFiles

MOST_BYTES = 1 << 30


def default_root() -> Path:
    """The folder of lowered programs among the user's caches. TORCHANE_CACHE names another place for all of them."""
    return users_folder() / "lowered"


class LoweredPrograms:
    """The folder, for one chip. `most_bytes`: what it may hold."""

    def __init__(self, root: Path, chip: str = "", ranges: bool = False, most_bytes: int = MOST_BYTES):
        self.root = root
        self._kind = f"{chip}, ranges {'on' if ranges else 'off'}"
        self._files = KeptFiles(root, ".program", most_bytes, "lowered programs", "the program is lowered anew")

    def get(self, structure: str) -> ProgramSpec | None:
        """The program of that structure, if it lies there whole."""
        key = self._key(structure)
        return self._files.get(key, lambda data: from_bytes(data, key))

    def put(self, structure: str, spec: ProgramSpec) -> None:
        """Keeps a program. Where the folder cannot be written, that is said once and nothing is kept."""
        key = self._key(structure)
        self._files.put(key, to_bytes(spec, key))

    def entries(self) -> list[Entry]:
        """Every file, of every version, the one used longest ago first."""
        return self._files.entries()

    def clear(self) -> int:
        """Removes every file; how many. A process that is compiling loses time by it, nothing else."""
        return self._files.clear()

    def _key(self, structure: str) -> str:
        return hashlib.sha256(f"{structure}, {self._kind}".encode()).hexdigest()
