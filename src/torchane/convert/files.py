"""Outputs that appear whole or not at all, and never in the place of something that was there; inputs with bounds.

    with new_folder(Path("out/peft")) as folder: ...       out/.peft.partial-PID, renamed at the end, removed after a failure
    with new_file(Path("model.gguf")) as path: ...
"""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from torchane.errors import ParseError, TorchaneError, UsageError
from torchane.models.files import ADVICE, LARGEST_JSON_BYTES, open_regular, parse_json, sync

_ZIP = b"PK\x03\x04"


class OutputError(TorchaneError):
    """A file or folder could not be written."""


def require_free(path: Path) -> None:
    """Raises UsageError where something is there already."""
    if os.path.lexists(path):
        raise UsageError(f"{path} is there already, and nothing is written over. Move it away, or name another place (--out; torchane fuse: --save-path).")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which has the name `path` once the block is left. Raises UsageError, OutputError."""
    with _partial(path) as partial:
        partial.mkdir()
        yield partial
        for file in partial.iterdir():
            sync(file)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """The name of a file to write, which has the name `path` once the block is left. Raises UsageError, OutputError."""
    with _partial(path) as partial:
        yield partial
        sync(partial)


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    require_free(path)
    partial = path.parent / f".{path.name}.partial-{os.getpid()}"
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        yield partial
        require_free(path)  # while it was written
        os.rename(partial, path)
        sync(path.parent)
    except OSError as error:
        raise _not_written(path, error.strerror or str(error), error.errno) from error
    except SafetensorError as error:  # which has the system's number in its text alone
        number = re.search(r"os error (\d+)", str(error))
        raise _not_written(path, str(error), int(number[1]) if number else None) from error
    finally:
        _remove(partial)
        for folder in made:
            with contextlib.suppress(OSError):  # where something is in it
                folder.rmdir()


def _not_written(path: Path, reason: str, number: int | None) -> OutputError:
    return OutputError(f"{path} could not be written: {reason}. {ADVICE.get(number or 0, 'Check the disk and the folder')}.")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def open_input(path: Path, limit_bytes: int = sys.maxsize) -> Any:
    """A regular file to read. Raises ParseError for a pipe, a device, a file that is not there, a pickle."""
    try:
        file = open_regular(path, limit_bytes)
    except FileNotFoundError as error:
        raise ParseError(f"{path} does not exist.") from error
    except (OSError, ValueError) as error:
        raise ParseError(f"{path} cannot be read: {(error.strerror if isinstance(error, OSError) else None) or error}.") from error
    start = file.read(4)
    file.seek(0)
    if path.suffix != ".safetensors" and is_pickle(start):
        file.close()
        raise ParseError(f"{path} {PICKLED}")
    return file


def is_pickle(start: bytes) -> bool:
    """From the first four bytes of a file: a zip, as torch.save writes, or the mark of a protocol and an opcode, which is not 0 (640, the
    first number of a llama2.c model of that width, is 80 02 00 00)."""
    return start.startswith(_ZIP) or (len(start) == 4 and start[0] == 0x80 and 2 <= start[1] <= 5 and start[2] != 0)


PICKLED = (
    "is a pickle, which can run any code when it is loaded; torchane loads none. Write it as safetensors where you trust it: "
    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)."
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises ParseError."""
    try:
        with open_input(path, LARGEST_JSON_BYTES) as file:
            value = parse_json(file.read().decode())
    except ValueError as error:
        raise ParseError(f"{path} is no JSON: {error}. It is damaged.") from error
    if not isinstance(value, dict):
        raise ParseError(f"{path} holds a {type(value).__name__}, and it should hold an object.")
    return value
