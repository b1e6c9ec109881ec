"""A model's folder as Hugging Face lays it out: `config.json` and `model.safetensors`.

transformers' `AutoModelForCausalLM.from_pretrained(folder)` reads what `save_model` writes, and
`load_model` reads what transformers' `save_pretrained` writes. Tied embeddings are stored once.
A weight file that torchane wrote says which config.json and tokenizer.json belong to it, by digest.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchane.errors import ParseError, RunFolderError, UsageError
from torchane.models.build import CausalLM, build_model
from torchane.models.config import Config, read_config
from torchane.models.files import json_digest, read_json, write_json
from torchane.models.tensors import TensorFile, save_tensors

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
INDEX = "model.safetensors.index.json"  # where transformers writes the weights in several files
PICKLED = "pytorch_model.bin"
HEAD = "lm_head.weight"
FILES = "files"  # in what a weight file says about itself: the digests of the files that belong to it


def save_config(folder: Path, config: Config) -> None:
    """Writes `config.json`. Raises RunFolderError."""
    write_json(folder / CONFIG, config.to_dict())


def save_weights(folder: Path, model: CausalLM, about: Mapping[str, Any] | None = None) -> None:
    """Writes `model.safetensors`, float32, under Hugging Face's names. Raises RunFolderError."""
    save_tensors(folder / WEIGHTS, dict(model.named_parameters()), about or {})  # a tied head once


def load_config(folder: Path) -> Config:
    """Raises RunFolderError if the file is missing, damaged or describes another architecture."""
    if not (folder / CONFIG).exists() and folder.is_dir():
        raise RunFolderError(
            f"{folder / CONFIG} does not exist, and without it nobody knows what model this is. Give a folder that "
            "`torchane train` or transformers' save_pretrained wrote; if it is one, copy the file back from a backup."
        )
    try:
        return read_config(read_json(folder / CONFIG), source=str(folder / CONFIG))
    except ParseError as error:
        raise RunFolderError(str(error)) from error


def load_model(folder: Path) -> CausalLM:
    """The model of the folder, its weights in float32, to write rather than to train: without dropout.
    Raises RunFolderError naming the file and the weight.
    """
    config = load_config(folder)
    file = open_weights(folder)
    require_files(folder, file)
    return model_of(config, file, folder).eval()


def model_of(config: Config, file: TensorFile, folder: Path, prefix: str = "") -> CausalLM:
    """A model with the weights of the file whose names begin with the prefix. Raises RunFolderError."""
    stored = sum(_count(shape) for name, shape in file.shapes.items() if name.startswith(prefix))
    if config.parameter_count > 2 * stored:  # before memory is taken for it
        raise RunFolderError(
            f"{folder / CONFIG} describes a model of {config.parameter_count:,} parameters, and {file.path.name} beside it holds "
            f"{stored:,} numbers. Both files must come from the same model."
        )
    try:
        model = build_model(config)
    except UsageError as error:
        raise RunFolderError(f"{folder / CONFIG}: {error}") from error
    own = {prefix + name: weight for name, weight in model.named_parameters()}
    if prefix + HEAD not in own:
        file.shapes.pop(prefix + HEAD, None)  # some writers store a tied head a second time
    needed = {name: tuple(weight.shape) for name, weight in own.items()}
    if not prefix:
        file.require_shapes(needed, CONFIG)
    copy_weights(own, file.read(lambda name: name in own))
    return model


def open_weights(folder: Path) -> TensorFile:
    """`model.safetensors`. Raises RunFolderError, which says where the weights are instead."""
    if not (folder / WEIGHTS).exists():
        for name, reason in ((INDEX, "holds its weights in several files"), (PICKLED, "holds its weights pickled")):
            if (folder / name).exists():
                raise RunFolderError(
                    f"{folder} {reason} ({name}), and torchane reads one {WEIGHTS}. Write it so with transformers: "
                    f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(NEW, max_shard_size='1TB')."
                )
    return TensorFile(folder / WEIGHTS)


def require_files(folder: Path, file: TensorFile) -> None:
    """Raises RunFolderError where a config.json or tokenizer.json is not the one that the weights were trained with."""
    known = file.about.get(FILES, {})
    for name in (CONFIG, TOKENIZER):
        if not isinstance(known, dict) or (name in known and known[name] != json_digest(read_json(folder / name))):
            raise RunFolderError(
                f"{folder / name} is not the one that {file.path.name} was trained with: it was changed, or comes from "
                "another run. Copy it back from a backup, or train again."
            )


@torch.no_grad()
def copy_weights(own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Copies stored tensors over those of the same names."""
    for name, weight in own.items():
        weight.copy_(stored[name])


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
