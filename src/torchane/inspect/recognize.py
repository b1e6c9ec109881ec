"""What a file or folder is, by its content.

kind_of(path)       one of Kind; raises ParseError for what is none of them
load_program(path)  the MIL program in it, weights mapped, whatever holds it
"""

import enum
import os
import struct
from pathlib import Path

from torchane.errors import ParseError
from torchane.inspect import e5, mlmodelc, mlpackage
from torchane.inspect.errors import FormatError
from torchane.inspect.hwx.container import MAGIC, OTHER_MAGIC
from torchane.mil import load, parse
from torchane.mil.blobs import RECORD_BEGINS
from torchane.mil.files import read_whole, require_fetched
from torchane.mil.ir import Program

_HEAD = 4096

#: What a folder that is none of the kinds may hold, and how many of these are named.
_SUFFIXES = (".mil", ".mlmodelc", ".mlpackage", ".mlmodel", ".hwx", ".bundle", ".e5")
_SHOWN = 5


class Kind(enum.Enum):
    """A kind of file, in words."""

    MIL = "MIL text"
    MLMODELC = "compiled Core ML model (folder)"
    PIPELINE = "compiled Core ML pipeline (folder)"
    COMPILED = "compiled Core ML model without MIL (folder)"
    MLPACKAGE = "Core ML model package (folder)"
    MLMODEL = "Core ML model (protobuf)"
    HWX = "compiled Neural Engine program"
    E5 = "E5 bundle (folder)"
    E5_DESCRIPTOR = "E5 descriptor"
    BLOBS = "weight file"

    @property
    def is_folder(self) -> bool:
        return self.value.endswith("(folder)")

    @property
    def holds_program(self) -> bool:
        return self in (Kind.MIL, Kind.MLMODELC, Kind.MLPACKAGE, Kind.MLMODEL)


def kind_of(path: str | os.PathLike[str]) -> Kind:
    """Raises ParseError for what is missing, none of the kinds, or a pointer to a file that was not fetched (Git LFS)."""
    path = Path(path)
    try:
        if path.is_dir():
            return _folder(path)
        size = path.stat().st_size
        if not path.is_file():
            raise ParseError(f"{path}: this is neither a file nor a folder.")
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ParseError(f"{path}: it cannot be read: {error.strerror or error}.") from error
    if not head:
        raise ParseError(f"{path}: the file is empty.")
    require_fetched(path, head)
    words = struct.unpack_from("<2I", head.ljust(8, b"\0"))
    if words[0] in (MAGIC, OTHER_MAGIC):
        return Kind.HWX
    if path.suffix == ".e5":
        return Kind.E5_DESCRIPTOR
    if path.suffix == ".mil" or _is_text(head):
        return Kind.MIL
    if path.suffix == ".mlmodel":
        return Kind.MLMODEL
    if size >= 64 and words[1] == 2 and (not any(head[8:64]) or head[64:68] == RECORD_BEGINS):
        return Kind.BLOBS
    if head[:1] == b"\x08":  # the tag of specificationVersion, which every writer puts first
        return Kind.MLMODEL
    raise ParseError(
        f"{path}: its first bytes ({head[:8].hex(' ')}) are those of none of the known kinds: "
        f"{', '.join(kind.value for kind in Kind if not kind.is_folder)}."
    )


def _folder(path: Path) -> Kind:
    if (path / mlpackage.MANIFEST).is_file():
        return Kind.MLPACKAGE
    if (path / "model.mil").is_file():
        return Kind.MLMODELC
    if mlmodelc.stages(path):
        return Kind.PIPELINE
    if (path / mlmodelc.DESCRIPTION).is_file():
        return Kind.COMPILED
    if e5.is_bundle(path):
        return Kind.E5
    within = sorted(entry.name for entry in path.iterdir() if entry.suffix in _SUFFIXES)
    more = f" Of those in it: {', '.join(within[:_SHOWN])}{', ...' if len(within) > _SHOWN else ''}." if within else ""
    raise ParseError(
        f"{path}: the folder has neither {mlpackage.MANIFEST} (.mlpackage), nor model.mil (.mlmodelc), nor an E5 "
        f"bundle's files.{more}"
    )


def _is_text(head: bytes) -> bool:
    """Whether the first word is one that MIL text begins with."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith((b"program", b"func ", b"//", b"/*"))


def load_program(path: str | os.PathLike[str], *, with_weights: bool = True) -> Program:
    """Raises ParseError for what holds no MIL program, and for what is damaged or lacks its weights, unless those
    are not wanted: then constants in files stay named by their places."""
    path = Path(path)
    kind = kind_of(path)
    if kind in (Kind.MLPACKAGE, Kind.MLMODEL):
        return mlpackage.load(path, with_weights=with_weights)
    if kind is Kind.PIPELINE:
        stages = ", ".join(str(stage) for stage in mlmodelc.stages(path))
        raise ParseError(f"{path}: a pipeline holds several programs. Take one of its models: {stages}.")
    if kind not in (Kind.MIL, Kind.MLMODELC):
        raise ParseError(f"{path}: a {kind.value} holds no MIL program.")
    if with_weights:
        return load(path)
    file = path / "model.mil" if kind is Kind.MLMODELC else path
    try:
        text = read_whole(file, "the text").decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("MIL text is UTF-8, and this is not.", error.start, str(file)) from None
    return parse(text, str(file))
