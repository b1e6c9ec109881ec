"""Text that others made tokens of: files of uint16, as nanoGPT and llama2.c write them.

    train.bin and val.bin in a folder           nanoGPT: what to train on and what to hold out
    data00.bin, data01.bin, ... in a folder     llama2.c: the first is held out
    one file                                    its tail is held out

Nothing in them says which tokenizer they are of.
"""

import os
from pathlib import Path

import numpy as np

from torchane.data.corpus import LARGEST_VALID_BYTES, VALID_SHARE
from torchane.data.shards import Shards, chunks
from torchane.errors import DataError, shown
from torchane.models.files import require_regular

SUFFIX = ".bin"
DTYPE = np.dtype("<u2")
NANOGPT = ("train.bin", "val.bin")
#: llm.c puts 256 words before its tokens, of which this is the first.
LLM_C = (20240520, 20240801)
_BYTES_A_TOKEN = 3  # of text, about
_LARGEST = 1 << 50


def token_files(path: Path) -> list[Path] | None:
    """The files of tokens that `path` is or holds; None where it is something else, such as text."""
    if path.suffix == SUFFIX and path.is_file():
        return [path]
    if not path.is_dir():
        return None
    if all((path / name).is_file() for name in NANOGPT):
        return [path / name for name in NANOGPT]
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    is_llama2c = bool(names) and all(name.endswith(SUFFIX) and (path / name).is_file() for name in names)
    return [path / name for name in names] if is_llama2c else None


def read_tokens(files: list[Path], vocab_size: int) -> tuple[np.ndarray | Shards, np.ndarray | Shards, str]:
    """Mapped tokens to train on and to hold out, uint16 (N,), and a line about them. Raises DataError for a file that holds
    something else, or a token that the vocabulary does not have.
    """
    mapped = [_map(file) for file in files]
    for file, stream in zip(files, mapped, strict=True):
        largest = max(int(part.max()) for part in chunks(stream))
        if largest >= vocab_size:
            raise DataError(
                f"{file} has the token {largest:,}, and the model's vocabulary ends at {vocab_size - 1:,}. Choose a --preset with a "
                "larger one (gpt2 for nanoGPT's tokens, stories15m for llama2.c's), or check that the file holds uint16 tokens."
            )
    if len(files) == 1:
        wanted = min(VALID_SHARE * len(mapped[0]), LARGEST_VALID_BYTES / _BYTES_A_TOKEN)
        at = len(mapped[0]) - max(1, round(wanted))
        return mapped[0][:at], mapped[0][at:], f"{files[0]}: uint16 tokens, the last of them held out"
    if [file.name for file in files] == list(NANOGPT):
        return mapped[0], mapped[1], f"{files[0].parent}: nanoGPT's uint16 tokens, {files[1].name} held out"
    return Shards(mapped[1:]), mapped[0], f"{files[0].parent}: {len(files):,} files of uint16 tokens, {files[0].name} held out"


def _map(file: Path) -> np.ndarray:
    try:
        require_regular(info := os.stat(file), _LARGEST)
        if info.st_size < 2 * DTYPE.itemsize or info.st_size % DTYPE.itemsize:
            raise ValueError(f"it has {info.st_size:,} bytes, and tokens take 2 each")
        stream = np.memmap(file, DTYPE, "r")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{file} holds no uint16 tokens: {reason}. Give --data tokens of nanoGPT or llama2.c, or text.") from error
    if len(stream) > 1 and int(stream[0]) + (int(stream[1]) << 16) in LLM_C:
        raise DataError(
            f"{file} begins with the header of llm.c ({shown(LLM_C[0])}), which would be taken for tokens. Cut it off: tail -c +1025."
        )
    return stream
