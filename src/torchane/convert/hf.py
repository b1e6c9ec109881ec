"""A model's folder as Hugging Face lays it out: config.json, safetensors in one file or several, tokenizer files.

    read    any architecture; weights one at a time, in their own dtype; a shard that is missing or damaged is named
    write   one file, or shards of 5 GB with their index; `format` in the metadata says "pt", which mlx-lm takes, too

Pickles (pytorch_model.bin) are refused, never loaded. Source: transformers, save_pretrained.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from torchane.convert.files import PICKLED, open_input, read_json
from torchane.convert.model import EMBEDDING, HEAD, Model, Shape, Weights
from torchane.errors import ParseError, shown
from torchane.models.files import write_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
DTYPES = ("F16", "BF16", "F32", "F64")
#: What is copied from folder to folder beside the weights.
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
_LARGEST_FILE_BYTES = 256 << 20


def read(folder: Path) -> Model:
    """Raises ParseError for a folder that is none, a missing or damaged shard, weights that are pickled or quantised."""
    config = read_json(folder / CONFIG)
    files = {name: _content(folder / name) for name in FILES if (folder / name).exists()}
    weights = read_weights(folder)
    if config.get("tie_word_embeddings") is False and EMBEDDING in weights and HEAD not in weights:
        raise ParseError(f"{folder} has no {HEAD}, and its config.json says that the head is not the embedding (tie_word_embeddings). A part of its weights was not copied.")
    return Model(config, weights, files, str(folder))


def read_weights(folder: Path) -> Weights:
    """The weights of a folder, in one file or several."""
    places = _places(folder)
    shapes: dict[str, Shape] = {}
    for path in dict.fromkeys(places.values()):
        shapes |= tensor_shapes(path)
    missing = [name for name in places if name not in shapes]
    if missing:
        raise ParseError(f"{places[missing[0]]} has no {missing[0]}, and {INDEX} says it is there. The files do not belong together.")
    places = {name: places.get(name) or next(iter(places.values())) for name in shapes}
    return Weights(shapes, lambda name: read_tensor(places[name], name), str(folder))


def _places(folder: Path) -> dict[str, Path]:
    if (folder / WEIGHTS).exists():
        return dict.fromkeys(tensor_shapes(folder / WEIGHTS), folder / WEIGHTS)
    if (folder / INDEX).exists():
        listed = read_json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) and Path(name).name == name for name in listed.values()):
            raise ParseError(f"{folder / INDEX} has no weight_map of file names beside it. It is damaged.")
        absent = sorted({name for name in listed.values() if not (folder / name).exists()})
        if absent:
            raise ParseError(f"{folder} lacks {absent[0]}{f' and {len(absent) - 1} more' if len(absent) > 1 else ''} of the {len(set(listed.values()))} files of its weights. Copy the folder again.")
        return {name: folder / file for name, file in listed.items()}
    pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern)) if path.name != "training_args.bin"]
    if pickled:
        raise ParseError(f"{folder / pickled[0]} {PICKLED}")
    raise ParseError(f"{folder} has a config.json and no {WEIGHTS}: it holds no model, or its weights were not copied.")


def tensor_shapes(path: Path) -> dict[str, Shape]:
    """Of a safetensors file. Raises ParseError where it is damaged, cut short, a pickle, or quantised."""
    open_input(path).close()
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            dtypes = {name: part.get_dtype() for name, part in slices.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise ParseError(f"{path} is no whole safetensors file: {error}. Copy it again.") from error
    for name, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise ParseError(f"{path}: {shown(name)} is {dtype}; weights are read as {', '.join(DTYPES)}. Quantised models are not: take the one they were made from.")
    return shapes


def read_tensor(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ParseError(f"{path} is no whole safetensors file: {error}. Copy it again.") from error


def _content(path: Path) -> bytes:
    with open_input(path, _LARGEST_FILE_BYTES) as file:
        return file.read()


def write(model: Model, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Into an existing, empty folder. A head that is the embedding is stored once."""
    names = [name for name in model.weights if not (name == HEAD and model.config.get("tie_word_embeddings") and EMBEDDING in model.weights)]
    write_json(folder / CONFIG, _config(model))
    for name, content in model.files.items():
        (folder / name).write_bytes(content)
    shards: list[list[str]] = [[]]
    size = total = 0
    for name in names:
        bytes_ = 4 * _count(model.weights.shapes[name])
        if shards[-1] and size + bytes_ > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += bytes_
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: model.weights[name].contiguous() for name in shard}
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _config(model: Model) -> dict[str, Any]:
    """With the rotary positions in both of transformers' spellings: 5 writes rope_parameters, which mlx-lm does not read for every
    architecture, and earlier versions not at all."""
    config = {key: value for key, value in model.config.items() if key not in ("quantization", "quantization_config", "transformers_version")}
    if isinstance(config.get("rope_parameters"), Mapping) and "rope_theta" in config["rope_parameters"]:
        config.setdefault("rope_theta", model.rope_theta)
        if model.rope_type != "default":
            config.setdefault("rope_scaling", {key: value for key, value in model.rope.items() if key != "rope_theta"})
    return config


def _count(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def is_folder(path: Path) -> bool:
    """Whether a folder holds a model."""
    return (path / CONFIG).is_file()
