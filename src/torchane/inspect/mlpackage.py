"""Core ML's model package, a folder, read and written.

    NAME.mlpackage/Manifest.json                                what lies where
                   Data/com.apple.CoreML/model.mlmodel          the model, a protobuf
                   Data/com.apple.CoreML/weights/weight.bin     its large constants

Only the manifest says where the model lies; weights lie beside it, as the program's `@model_path` says.
Source: coremltools, modelpackage/src/ModelPackage.cpp.
"""

import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchane.errors import ParseError, TorchaneError
from torchane.inspect import mlmodel
from torchane.inspect.apart import constants_apart
from torchane.inspect.mlmodel import MLModel
from torchane.inspect.update_states import updates_apart
from torchane.mil.blobs import BlobFile, resolve
from torchane.mil.constants import load_blobs
from torchane.mil.files import read_whole
from torchane.mil.ir import Program
from torchane.mil.save import BLOB_THRESHOLD, extract_blobs

MANIFEST = "Manifest.json"
_VERSION = "1.0.0"
_AUTHOR = "com.apple.CoreML"

#: Names of items are made from their content in this namespace, so that equal packages are equal files.
_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")


@dataclass(frozen=True)
class Item:
    """One entry of a manifest; `path` is relative to the package's Data folder."""

    identifier: str
    name: str
    path: str
    author: str
    description: str


@dataclass(frozen=True)
class Manifest:
    version: str
    items: tuple[Item, ...]
    root: Item


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """What a package says of its content. Raises ParseError."""
    path = Path(folder) / MANIFEST
    try:
        data = json.loads(read_whole(path, "the manifest"))
    except json.JSONDecodeError as error:
        raise ParseError(f"{path}:{error.lineno}:{error.colno}: the manifest is no JSON: {error.msg}.") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ParseError(f"{path}: the manifest is no JSON that can be read: {error}.") from None
    entries = data.get("itemInfoEntries") if isinstance(data, dict) else None
    if not isinstance(entries, dict):
        raise ParseError(f"{path}: the manifest has no itemInfoEntries; it is not that of a Core ML package.")
    items = {key: _item(path, key, entry) for key, entry in entries.items()}
    root = data.get("rootModelIdentifier")
    if not isinstance(root, str) or root not in items:
        raise ParseError(f"{path}: rootModelIdentifier is {root!r}, which is none of the package's {len(items)} items.")
    return Manifest(str(data.get("fileFormatVersion", "")), tuple(items.values()), items[root])


def _item(path: Path, key: str, entry: Any) -> Item:
    fields = ("name", "path", "author", "description")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name, ""), str) for name in fields):
        raise ParseError(f"{path}: the item {key} is not described by strings.")
    return Item(key, *(entry.get(name, "") for name in fields))


def model_path(folder: str | os.PathLike[str]) -> Path:
    """The package's model file. Raises ParseError; BlobPathError for one that lies outside the package."""
    return resolve(Path(folder) / "Data", read_manifest(folder).root.path, "the manifest names the model")


def read(path: str | os.PathLike[str], *, with_weights: bool = True) -> MLModel:
    """The model of a package or of a bare `.mlmodel` file; the constants of its program are mapped from the weight
    files beside it, unless they are not wanted. Raises ParseError for what is missing or damaged."""
    path = Path(path)
    file = model_path(path) if path.is_dir() else path
    data = read_whole(file, "the model")
    model = mlmodel.parse(data, str(file))
    if model.program is None or not with_weights:
        return model
    files: dict[str, BlobFile] = {}

    def opened(name: str) -> BlobFile:
        if name not in files:
            files[name] = BlobFile.open(resolve(file.parent, name))
        return files[name]

    return replace(model, program=load_blobs(model.program, opened))


def load(path: str | os.PathLike[str], *, with_weights: bool = True) -> Program:
    """The program of a package or model file, as `read` gives it. Raises ParseError where there is none."""
    model = read(path, with_weights=with_weights)
    if model.program is None:
        held = "it holds no MIL"
        if any(stage.program is not None for _, stage in model.stages):
            held = f"of its {len(model.stages)} models some hold MIL; mlpackage.read(path).stages has each"
        raise ParseError(f"{path}: the model is a {model.kind}, not an mlProgram: {held}.")
    return model.program


def save(
    program: Program,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    blob_threshold: int = BLOB_THRESHOLD,
) -> Path:
    """Writes a package, in the place of one that is there, and returns its path.

    metadata: see `mlmodel.to_bytes`. Every constant gets a statement of its own (`apart`), every update of a state
    two (`update_states`); constants of more than `blob_threshold` bytes go to the weight file.
    Equal programs give equal files. Everything is written before anything takes its place.
    Raises UsageError for what Core ML cannot hold, TorchaneError where the disk refuses or something else is there.
    """
    path = Path(path)
    program, writer = extract_blobs(constants_apart(updates_apart(program)), blob_threshold)
    model = mlmodel.to_bytes(program, metadata)
    weights = writer.to_bytes() if len(writer) else b""
    if path.exists() and not (path / MANIFEST).is_file():
        raise TorchaneError(f"{path}: there is something else here, not a Core ML package. Choose another name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=path.parent) as temporary:
            new = Path(temporary, "new")
            data = new / "Data" / _AUTHOR
            data.mkdir(parents=True)
            (data / "model.mlmodel").write_bytes(model)
            if weights:
                (data / "weights").mkdir()
                (data / "weights" / "weight.bin").write_bytes(weights)
            (new / MANIFEST).write_text(_manifest(model, weights), encoding="utf-8")
            if path.exists():
                os.replace(path, Path(temporary, "old"))
            os.replace(new, path)
    except OSError as error:
        raise TorchaneError(f"{path}: the package cannot be written: {error.strerror or error}.") from error
    return path


def _manifest(model: bytes, weights: bytes) -> str:
    root = str(uuid.uuid5(_NAMESPACE, model.hex())).upper()
    entries = {root: _entry("model.mlmodel", "CoreML Model Specification", f"{_AUTHOR}/model.mlmodel")}
    if weights:
        other = str(uuid.uuid5(_NAMESPACE, f"weights of {root}")).upper()
        entries[other] = _entry("weights", "CoreML Model Weights", f"{_AUTHOR}/weights")
    content = {"fileFormatVersion": _VERSION, "itemInfoEntries": entries, "rootModelIdentifier": root}
    return json.dumps(content, indent=4) + "\n"


def _entry(name: str, description: str, path: str) -> dict[str, str]:
    return {"author": _AUTHOR, "description": description, "name": name, "path": path}
