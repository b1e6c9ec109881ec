"""What the framework is handed of a program: text that no other program has, weight files, ports by their symbols.

    text + blobs ── tagged ──► text with the hash of both in buildInfo      the framework knows a program by its text
    one packed file ── separated ──► a file per constant, at most 16        where a chip does not take a packed one
    port names ── places ──► sorted by symbol (`name`, `name@output`), or as the loaded program lists them

Each record of a packed file holds the absolute place of its own data (mil/blobs.py).
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchane.errors import DeviceError
from torchane.mil.blobs import BlobFile, BlobWriter
from torchane.mil.constants import map_literals
from torchane.mil.ir import Blob, Literal
from torchane.mil.save import TAG
from torchane.mil.text import parse, to_text
from torchane.mil.types import TensorType

#: Raised when the form of what is handed over changes, so that nothing compiled before is taken for it.
FORM = 1
#: More weight files than this fail to compile (16 work, 17 do not: M4, macOS 27.0).
MOST_FILES = 16
#: Chips of the M1 family refused a packed file in one report and took separate ones.
SEPARATE_ON = ("h13",)

_BUILD_INFO = "[buildInfo = dict<string, string>({"
_PATH = re.compile(r'BLOBFILE\(\s*path\s*=\s*(?:string|tensor<string,\s*\[\s*\]>)\("([^"]+)"\)')


@dataclass(frozen=True)
class Source:
    """key: the hash of all of it. weights: the files that the text names, by their path in it. plain: the text without its tag."""

    text: str
    weights: Mapping[str, bytes] = field(repr=False)
    key: str = ""
    plain: str = field(default="", repr=False)


def source_of(text: str, blobs: Mapping[str, bytes], architecture: str = "") -> Source:
    """blobs: at least the files that the text names. architecture: of the chip, as the framework calls it."""
    if architecture.startswith(SEPARATE_ON):
        text, blobs = separated(text, blobs)
    weights = {path: blobs[path] for path in dict.fromkeys(_PATH.findall(text))}
    digest = hashlib.sha256(f"{FORM}\0{text}".encode())
    for path, data in sorted(weights.items()):
        digest.update(b"\0" + path.encode() + b"\0" + data)
    key = digest.hexdigest()
    return Source(tagged(text, key), weights, key, text)


def tagged(text: str, tag: str) -> str:
    """The text with a pair in buildInfo that no other program has. Compilers that know a program by its text alone would
    take one for another that differs in weights only."""
    pair = f'{{"{TAG}", "{tag}"}}'
    if _BUILD_INFO in text:
        return text.replace(_BUILD_INFO, f"{_BUILD_INFO}{pair}, ", 1)
    head, brace, rest = text.partition("{")
    return f"{head}{_BUILD_INFO}{pair}}})]\n{brace}{rest}"


def separated(text: str, blobs: Mapping[str, bytes]) -> tuple[str, Mapping[str, bytes]]:
    """The same program with a file of its own for every constant; unchanged where these would be more than 16."""
    opened = {path: BlobFile.from_bytes(data, path) for path, data in blobs.items()}
    places: dict[tuple[str, int], str] = {}
    files: dict[str, bytes] = {}

    def moved(literal: Literal) -> Literal:
        if not isinstance(literal.value, Blob) or not isinstance(literal.type, TensorType):
            return literal
        place = literal.value.path, literal.value.offset
        if place not in places:
            writer = BlobWriter()
            elements = opened[place[0]].read_as(place[1], literal.type.dtype)
            assert writer.add(elements, literal.type.dtype) == 64
            places[place] = f"@model_path/weights/w{len(places):02d}.bin"
            files[places[place]] = writer.to_bytes()
        return Literal(literal.type, Blob(places[place], 64))

    made = to_text(map_literals(parse(text), moved))
    return (made, files) if len(files) <= MOST_FILES else (text, blobs)


def places(names: Sequence[str], is_output: bool, attributes: Any, program: str) -> list[int]:
    """Where each port stands among the program's symbols.

    Symbols are in the order of their bytes, outputs under `name@output`. A loaded program that lists its symbols is
    believed instead; one that lists others is refused: data would go to the wrong port.
    """
    wanted = [f"{name}@output" if is_output else name for name in names]
    listed = _listed(attributes, "kANEFModelOutputSymbolsArrayKey" if is_output else "kANEFModelInputSymbolsArrayKey")
    if listed is None:
        ordered = sorted(wanted, key=str.encode)
        return [ordered.index(symbol) for symbol in wanted]
    if is_output and sorted(listed) == sorted(names):
        wanted = list(names)
    if sorted(listed) != sorted(wanted):
        raise DeviceError(
            f"{program}: the engine lists the {'outputs' if is_output else 'inputs'} {', '.join(listed)} and the text has "
            f"{', '.join(wanted)}, so nobody can say which is which. Please report it with the program (--dump)."
        )
    return [listed.index(symbol) for symbol in wanted]


def _listed(attributes: Any, key: str) -> list[str] | None:
    """The first list of this name in a tree of attributes; systems keep it at different depths."""
    if isinstance(attributes, Mapping):
        found = attributes.get(key)
        if isinstance(found, list) and found and all(isinstance(symbol, str) for symbol in found):
            return found
        return next((below for value in attributes.values() if (below := _listed(value, key)) is not None), None)
    return None
