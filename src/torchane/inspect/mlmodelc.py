"""What lies beside the text in a compiled Core ML model: `metadata.json`, Apple's own summary.

    model.mlmodelc/model.mil  weights/weight.bin  metadata.json  coremldata.bin          a program
    model.mlmodelc/model0/...  model1/...  metadata.json  coremldata.bin                 a pipeline, each stage a model

`coremldata.bin` and what lies in `analytics/` have no public description and are only listed.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from torchane.errors import ParseError
from torchane.mil.files import read_whole

METADATA = "metadata.json"
DESCRIPTION = "coremldata.bin"

#: What no pipeline has so many of.
_MOST_STAGES = 1000

#: What of the summary is about the model as a whole.
_KEYS = (
    "specificationVersion", "shortDescription", "version", "author", "license", "storagePrecision", "computePrecision",
    "availability", "userDefinedMetadata",
)  # fmt: skip

#: Where the summary describes ports, and the keys by which it says which shapes or sizes flexible ones may have.
_SCHEMAS = {
    "inputs": "inputSchema", "outputs": "outputSchema", "states": "stateSchema", "training inputs": "trainingInputSchema",
}  # fmt: skip
_FLEXIBLE = re.compile(r"(shape|size)Flexibility|(shape|size|width|height)Range|enumerated(Shapes|Sizes)")

#: How many layers of each kind a compiled neural network has.
_LAYERS = "neuralNetworkLayerTypeHistogram"


def read_metadata(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The summary's object; empty if there is no such file. Raises ParseError for one that is damaged."""
    path = Path(folder) / METADATA
    if not path.exists():
        return {}
    try:
        content = json.loads(read_whole(path, "the summary"))
    except json.JSONDecodeError as error:
        raise ParseError(f"{path}:{error.lineno}:{error.colno}: the summary is no JSON: {error.msg}.") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ParseError(f"{path}: the summary is no JSON that can be read: {error}.") from None
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        raise ParseError(f"{path}: the summary is no object, as Apple's compiler writes it.")
    return first


def summary(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The part of it that the program itself does not say."""
    metadata = read_metadata(folder)
    found = {key: metadata[key] for key in _KEYS if metadata.get(key)}
    kind = metadata.get("modelType")
    if isinstance(kind, dict) and isinstance(kind.get("name"), str):
        found["modelType"] = kind["name"].removeprefix("MLModelType_")
    ports = {what: _ports(metadata.get(key)) for what, key in _SCHEMAS.items()}
    if any(ports.values()):
        found["description"] = ports
    if isinstance(metadata.get(_LAYERS), dict):
        found["layers"] = metadata[_LAYERS]
    return found


def _ports(schema: Any) -> dict[str, str]:
    """By name, what the summary says of inputs, outputs or states, in Apple's words."""
    entries = [entry for entry in schema if isinstance(entry, dict)] if isinstance(schema, list) else []
    return {str(entry.get("name", "?")): _port(entry) for entry in entries}


def _port(entry: dict[str, Any]) -> str:
    said = str(entry.get("formattedType") or entry.get("type") or "?")
    shapes = [f"{key} {value}" for key, value in entry.items() if value and _FLEXIBLE.fullmatch(key)]
    if shapes or "1" in (entry.get("hasShapeFlexibility"), entry.get("hasSizeFlexibility")):
        said += f" ({'; '.join(shapes) or 'of flexible shape'})"
    return said + (", optional" if entry.get("isOptional") == "1" else "")


def stages(folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The models of a pipeline in their order; none if the folder holds no pipeline."""
    folder = Path(folder)
    found: list[Path] = []
    while len(found) < _MOST_STAGES and any(
        (folder / f"model{len(found)}" / name).is_file() for name in ("model.mil", DESCRIPTION)
    ):
        found.append(folder / f"model{len(found)}")
    return tuple(found)
