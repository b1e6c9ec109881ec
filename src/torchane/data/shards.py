"""Streams of tokens in mapped files: the system reads what a batch asks for, and memory holds no more than it has room for.

    encode ──► file without a name, uint16 or uint32 ──map──► stream[positions] ──► tokens
    train.bin of nanoGPT, data00.bin ... of llama2.c ──map──┘
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchane.errors import DataError

#: Tokens that are looked at together where all of them are: 8 MiB of uint16.
CHUNK = 4 << 20


class Shards:
    """Arrays as one stream, (N,): stream[positions] gives an array of their shape. Tokens of one dtype."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = [part for part in parts if len(part)]
        self.dtype = parts[0].dtype
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.parts else 0

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        found = np.empty(positions.shape, self.dtype)
        which = np.searchsorted(self._ends, positions, side="right")
        for index in np.unique(which):
            here = which == index
            begin = self._ends[index] - len(self.parts[index])
            found[here] = self.parts[index][positions[here] - begin]
        return found


def chunks(stream: np.ndarray | Shards) -> Iterator[np.ndarray]:
    """All tokens in order, some at a time."""
    for part in stream.parts if isinstance(stream, Shards) else [stream]:
        for begin in range(0, len(part), CHUNK):
            yield np.asarray(part[begin : begin + CHUNK])


def write_shard(pieces: Iterable[np.ndarray], dtype: Any, folder: Path) -> np.ndarray:
    """The pieces one after another, mapped from a file in `folder` that has no name and goes with the process.
    Raises DataError where it cannot be written.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            count = 0
            for piece in pieces:
                file.write(np.ascontiguousarray(piece, dtype).data)
                count += len(piece)
            file.flush()
            return np.memmap(file, dtype, "r", shape=(count,)) if count else np.zeros(0, dtype)
    except OSError as error:
        raise DataError(
            f"The tokens of the text could not be kept in {folder}: {error.strerror or error}. They take 2 bytes each, about half "
            "the text's size. Free some space there, or choose another folder with --out."
        ) from error
