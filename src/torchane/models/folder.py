"""A model's folder as Hugging Face lays it out: `config.json` and `model.safetensors`.

transformers' `AutoModelForCausalLM.from_pretrained(folder)` reads what `save_model` writes, and
`load_model` reads what transformers' `save_pretrained` writes. Tied embeddings are stored once.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from torchane.errors import ParseError, RunFolderError
from torchane.models.build import CausalLM, build_model, read_config
from torchane.models.config import Config
from torchane.models.files import read_error, read_json, write_atomically, write_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
HEAD = "lm_head.weight"


def save_config(folder: Path, config: Config) -> None:
    """Writes `config.json`. Raises RunFolderError."""
    write_json(folder / CONFIG, config.to_dict())


def save_weights(folder: Path, model: CausalLM) -> None:
    """Writes `model.safetensors`, float32, under Hugging Face's names. Raises RunFolderError."""
    weights = {name: weight.detach().contiguous() for name, weight in model.named_parameters()}  # a tied head once
    write_atomically(folder / WEIGHTS, lambda path: save_file(weights, path, metadata={"format": "pt"}))


def load_config(folder: Path) -> Config:
    """Raises RunFolderError if the file is missing, damaged or describes another architecture."""
    try:
        return read_config(read_json(folder / CONFIG), source=str(folder / CONFIG))
    except ParseError as error:
        raise RunFolderError(str(error)) from error


def load_model(folder: Path) -> CausalLM:
    """The model of the folder, its weights in float32, to write rather than to train: without dropout.
    Raises RunFolderError naming the file and the weight.
    """
    config = load_config(folder)
    weights = read_tensors(folder / WEIGHTS)
    model = build_model(config)
    own = dict(model.named_parameters())
    if HEAD not in own:
        weights.pop(HEAD, None)  # some writers store a tied head a second time
    copy_weights(own, weights, source=folder / WEIGHTS)
    return model.eval()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, in memory of its own. Raises RunFolderError."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise read_error(path, error) from error


@torch.no_grad()
def copy_weights(own: dict[str, Tensor], stored: dict[str, Tensor], *, source: Path) -> None:
    """Copies stored tensors over those of the same name. Raises RunFolderError, before any copy, where they differ."""
    complaints = [f"{name} is missing" for name in own if name not in stored]
    complaints += [f"{name} belongs to no part of the model" for name in stored if name not in own]
    complaints += [
        f"{name} is {tuple(stored[name].shape)} and the model needs {tuple(weight.shape)}"
        for name, weight in own.items()
        if name in stored and stored[name].shape != weight.shape
    ]
    if complaints:
        more = f", and {len(complaints) - 3} more" if len(complaints) > 3 else ""
        raise RunFolderError(
            f"{source} does not fit the {CONFIG} beside it: {'; '.join(complaints[:3])}{more}. "
            "Both files must come from the same model."
        )
    for name, weight in own.items():
        weight.copy_(stored[name])
