"""A program with its weights, out of memory and back: what a device is handed, and folders on disk.

folder/model.mil              the text
folder/weights/weight.bin     constants above a size, named in the text as @model_path/weights/weight.bin
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from torchane.errors import ParseError, TorchaneError, UsageError
from torchane.mil.blobs import CODES, BlobFile, BlobWriter, resolve
from torchane.mil.constants import load_blobs, map_literals
from torchane.mil.files import read_whole
from torchane.mil.ir import Blob, Literal, Program
from torchane.mil.text import KERNEL, Style, parse, to_text
from torchane.mil.types import TensorType

#: Where our programs keep their constants; `@model_path` is the program's own folder.
WEIGHT_PATH = "@model_path/weights/weight.bin"

#: Constants of more bytes than this lie in the weight file: compile time grows with inline text.
BLOB_THRESHOLD = 64

#: The pair in buildInfo that makes the text of two programs differ when only their weights do.
TAG = "torchane-tag"
_TAGGED = re.compile(rf'("{TAG}", ")([0-9a-f]{{64}})"')


def emit(
    program: Program, *, blob_threshold: int = BLOB_THRESHOLD, tag: bool = False, style: Style = KERNEL, later: Collection[str] = ()
) -> tuple[str, dict[str, bytes]]:
    """What a device is given: the text, and the bytes of the weight file it names (none if it names none).

    Constants of more than `blob_threshold` bytes go to the file wherever the program holds them (in `const`
    statements, as arguments, in attributes), equal ones once. With `tag`, buildInfo says the hash of text and weights: compilers that know a
    program by its text alone would take one for another (ane-private-api.md, Identity), and equal programs
    still share one compiled form. later: files whose constants stay where they are, to be written when their numbers are known (`retagged`).
    Raises UsageError for a constant that still lies in another file: read the program with `mil.load`.
    """
    program, writer = extract_blobs(program, blob_threshold, later)
    text = to_text(program, style)
    weights = writer.to_bytes() if len(writer) else b""
    if tag:
        digest = hashlib.sha256(text.encode() + b"\0" + weights).hexdigest()
        text = to_text(replace(program, build_info=(*program.build_info, (TAG, digest))), style)
    return text, {WEIGHT_PATH: weights} if weights else {}


def retagged(text: str, weights: bytes) -> str:
    """A text that has a tag, for these bytes of a file that was written later."""
    found = _TAGGED.search(text)
    assert found is not None, "the text has no tag"
    digest = hashlib.sha256(found[2].encode() + b"\0" + weights).hexdigest()
    return f"{text[: found.start(2)]}{digest}{text[found.end(2) :]}"


def extract_blobs(program: Program, threshold: int = BLOB_THRESHOLD, later: Collection[str] = ()) -> tuple[Program, BlobWriter]:
    """The program with every numeric constant of more than `threshold` bytes, an op's argument or attribute
    (`val` of const; the data of constexpr ops is either), replaced by its place in a new weight file. later: as in `emit`."""
    writer = BlobWriter()

    def moved(literal: Literal) -> Literal:
        type_ = literal.type
        if isinstance(literal.value, Blob) and literal.value.path in later:
            return literal
        if isinstance(literal.value, Blob):
            raise UsageError(
                f"the constant at {literal.value.offset} of {literal.value.path} is not in memory. Read the program "
                "with its weights, mil.load(path), before writing it elsewhere."
            )
        if not isinstance(literal.value, np.ndarray) or not isinstance(type_, TensorType):
            return literal
        if type_.dtype not in CODES or not type_.is_fixed or type_.size_bytes <= threshold:
            return literal
        return Literal(type_, Blob(WEIGHT_PATH, writer.add(literal.value, type_.dtype)))

    return map_literals(program, moved), writer


def load(path: str | os.PathLike[str]) -> Program:
    """The program of a .mil file, or of the `model.mil` in a folder, its constants mapped from the weight
    files that it names beside it; they are views, no bytes are copied.

    Raises ParseError for a file that is missing or damaged, BlobPathError for weights outside its folder, UsageError
    for a package.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "Manifest.json").is_file():
            raise UsageError(f"{path}: this is a Core ML package. Read it with torchane.inspect.mlpackage.load.")
        path = path / "model.mil"
    data = read_whole(path, "the file")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ParseError(
            f"{path}: byte {error.start:,}: MIL text is UTF-8, and this is not. Is it a .mil file?"
        ) from None
    files: dict[str, BlobFile] = {}

    def opened(name: str) -> BlobFile:
        if name not in files:
            files[name] = BlobFile.open(resolve(path.parent, name))
        return files[name]

    return load_blobs(parse(text, str(path)), opened)


def save(
    program: Program,
    folder: str | os.PathLike[str],
    *,
    blob_threshold: int = BLOB_THRESHOLD,
    style: Style = KERNEL,
) -> Path:
    """Writes the program into `folder`, which is made if it is missing, and returns the path of its text.

    Both files are written in full before either takes its place, weights first: a disk that is full leaves what
    stood there, and who has mapped the old weights keeps them. Raises TorchaneError where the disk refuses.
    """
    folder = Path(folder)
    program, writer = extract_blobs(program, blob_threshold)
    text = to_text(program, style)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
            _write(Path(temporary, "model.mil"), [text.encode("utf-8")])
            if len(writer):
                _write(Path(temporary, "weight.bin"), writer.chunks())
                (folder / "weights").mkdir(exist_ok=True)
                os.replace(Path(temporary, "weight.bin"), folder / "weights" / "weight.bin")
            os.replace(Path(temporary, "model.mil"), folder / "model.mil")
    except OSError as error:
        raise TorchaneError(f"{folder}: the program cannot be written: {error.strerror or error}.") from error
    return folder / "model.mil"


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    """Writes and waits until the disk has it."""
    with open(path, "wb") as file:
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())
