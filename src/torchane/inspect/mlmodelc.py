"""What lies beside the text in a compiled Core ML model: `metadata.json`, Apple's own summary.

    model.mlmodelc/model.mil  weights/weight.bin  metadata.json  coremldata.bin          a program
    model.mlmodelc/model0/...  model1/...  metadata.json  coremldata.bin                 a pipeline, each stage a model

`coremldata.bin` and what lies in `analytics/` have no public description and are only listed.
"""

import json
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


def read_metadata(folder: Path) -> dict[str, Any]:
    """The summary's object; empty if there is no such file. Raises ParseError for one that is damaged."""
    path = folder / METADATA
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


def summary(folder: Path) -> dict[str, Any]:
    """The part of it that the program itself does not say."""
    metadata = read_metadata(folder)
    found = {key: metadata[key] for key in _KEYS if metadata.get(key)}
    kind = metadata.get("modelType")
    if isinstance(kind, dict) and isinstance(kind.get("name"), str):
        found["modelType"] = kind["name"].removeprefix("MLModelType_")
    return found


def stages(folder: Path) -> tuple[Path, ...]:
    """The models of a pipeline in their order; none if the folder holds no pipeline."""
    found = []
    while len(found) < _MOST_STAGES and any(
        (folder / f"model{len(found)}" / name).is_file() for name in ("model.mil", DESCRIPTION)
    ):
        found.append(folder / f"model{len(found)}")
    return tuple(found)
