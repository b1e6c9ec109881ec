"""E5 bundles: the folder that Espresso's compiler leaves, and its descriptor, a FlatBuffer.

    <hash>.bundle/H16G.bundle/    per target: a descriptor (*.e5), folders per function (main, main_ane, ...), .hwx
                    analytics.mil the program, each op annotated with where it was placed

No public descriptor could be had: its schema here is one source's (GDE), rebuilt from names in the serializer and one
file; fields past it are shown by their place. FlatBuffers have no magic number, so a descriptor is known by what its
four fields are. See docs/formats.md.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchane.errors import ParseError
from torchane.inspect.errors import FormatError
from torchane.inspect.flatbuffer import FlatBuffer, Table
from torchane.mil.files import read_whole
from torchane.mil.ir import walk
from torchane.mil.text import parse as parse_text

#: The root table's fields.
_SYMBOL_NAMES, _BUILD_INFO, _SECTIONS, _FORMAT_VERSION = 4, 8, 12, 16

ANALYTICS = "analytics.mil"
_SELECTED, _ESTIMATED = "SelectedBackend", "EstimatedRuntime"
_FUNCTIONS = ("main", "main_ane", "main_classic_cpu")

# A bundle holds some dozen files; a folder with more entries than this is none.
_MOST_FILES = 10_000
_MOST_BYTES = 1 << 26


@dataclass(frozen=True)
class Descriptor:
    """What a descriptor says. sections: names and kinds; unknown: fields of the root that the schema lacks, as
    voffset and place."""

    symbol_names: tuple[str, ...]
    build_info: tuple[tuple[str, str], ...]
    sections: tuple[tuple[str, int | str | None], ...]
    format_version: int | None
    unknown: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class BundleFile:
    """A file of a bundle, by its path in it; `what` is its role where known."""

    path: str
    what: str
    size_bytes: int


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. backends: per value of SelectedBackend in analytics.mil, how many ops; estimated_ms: the sum of
    their EstimatedRuntime, Apple's own estimate, where it is given; faults: what could not be read, in words."""

    path: str
    files: tuple[BundleFile, ...]
    descriptors: dict[str, Descriptor]
    backends: dict[str, int]
    estimated_ms: dict[str, float]
    faults: tuple[str, ...]


def parse_descriptor(data: bytes, path: str = "<e5>") -> Descriptor:
    """The descriptor in the bytes of a file. Raises FormatError, which names the byte."""
    root = FlatBuffer(data, path).root()
    if not {_SYMBOL_NAMES, _SECTIONS}.intersection(root.fields):
        raise FormatError("the root table has none of a descriptor's fields; this is no E5 descriptor.", 0, path)
    info = root.table(_BUILD_INFO)
    known = (_SYMBOL_NAMES, _BUILD_INFO, _SECTIONS, _FORMAT_VERSION)
    return Descriptor(
        symbol_names=root.strings(_SYMBOL_NAMES),
        build_info=() if info is None else tuple(map(_pair, info.tables(4))),
        sections=tuple(map(_section, root.tables(_SECTIONS))),
        format_version=root.integer(_FORMAT_VERSION),
        unknown=tuple((voffset, root.place(voffset)) for voffset in root.fields if voffset not in known),
    )


def _pair(entry: Table) -> tuple[str, str]:
    return entry.string(4) or "", entry.string(6) or ""


def _section(section: Table) -> tuple[str, int | None]:
    return section.string(4) or "", section.integer(6, "<B")


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like an E5 bundle."""
    path = Path(path)
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    has_parts = any(name.endswith((".e5", ".bundle")) for name in names)
    return has_parts or ANALYTICS in names or (path.suffix == ".bundle" and bool(names.intersection(_FUNCTIONS)))


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """The bundle in a folder. Raises ParseError for a folder that cannot be read or is far too large; a damaged file
    in it is listed among the faults."""
    path = Path(path)
    files: list[BundleFile] = []
    descriptors: dict[str, Descriptor] = {}
    backends: Counter[str] = Counter()
    estimated: dict[str, float] = {}
    faults: list[str] = []
    for file in _files(path):
        name = str(file.relative_to(path))
        if not file.is_file():
            faults.append(f"{name}: it is no regular file, or a link that leads to none, and was not read.")
            continue
        size = file.stat().st_size
        files.append(BundleFile(name, _role(file), size))
        if file.suffix != ".e5" and file.name != ANALYTICS:
            continue
        try:
            if size > _MOST_BYTES:
                raise ParseError(f"{name}: {size:,} bytes are more than such a file has.")
            if file.suffix == ".e5":
                descriptors[name] = parse_descriptor(read_whole(file, "the descriptor"), name)
            else:
                for backend, estimate in _placements(file, name):
                    backends[backend] += 1
                    if estimate is not None:
                        estimated[backend] = estimated.get(backend, 0.0) + estimate
        except (ParseError, OSError) as error:
            faults.append(str(error))
    return Bundle(str(path), tuple(files), descriptors, dict(backends), estimated, tuple(faults))


def _files(path: Path) -> Iterator[Path]:
    count = 0
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            count += 1
            if count > _MOST_FILES:
                raise ParseError(f"{path}: more than {_MOST_FILES:,} files; this is no E5 bundle.")
            yield Path(folder) / name


def _role(file: Path) -> str:
    roles = {".e5": "descriptor", ".hwx": "engine program", ".mil": "MIL text", ".bin": "weights"}
    if file.name == ANALYTICS:
        return "placement of every op"
    named = {"model.anehash": "hash of the program", "net.plist": "netplist", "data": "weights"}
    if file.name in named:
        return named[file.name]
    return roles.get(file.suffix, "?")


def _placements(file: Path, name: str) -> Iterator[tuple[str, float | None]]:
    """Where each op of an annotated program was placed, and how long it was estimated to take, in milliseconds."""
    try:
        text = read_whole(file, "the text").decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("the text is not UTF-8.", error.start, name) from None
    for function in parse_text(text, name).functions:
        for op in walk(function.ops):
            if _SELECTED in op.attrs:
                estimate = op.attrs[_ESTIMATED].python() if _ESTIMATED in op.attrs else None
                if not isinstance(estimate, int | float) or not math.isfinite(estimate):
                    estimate = None
                yield str(op.attrs[_SELECTED].python()), estimate
