"""A run folder: everything about one training run, readable by others and enough to continue.

    config.json  model.safetensors  tokenizer.json     the model, as Hugging Face lays it out
    training.safetensors                               weights, moments and step, to resume from
    metrics.jsonl                                      one line a step and one a validation
    run.json                                           command, versions, seed, device, settings, data

Every file but the metrics is replaced whole (models/files.py); metrics are appended line by line, and
resuming cuts off what lies beyond the checkpoint, a torn last line included.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torchane.data.tokenizer import Tokenizer
from torchane.errors import DataError, RunFolderError, UsageError
from torchane.models.files import make_folder, read_error, read_json, write_error, write_json, write_text
from torchane.models.folder import save_config, save_weights
from torchane.models.build import CausalLM
from torchane.train.checkpoint import TrainState, load_checkpoint, save_checkpoint

RUN = "run.json"
TOKENIZER = "tokenizer.json"
TRAINING = "training.safetensors"
METRICS = "metrics.jsonl"
FORMAT = 1


class RunFolder:
    """One run's files. `create` and `open` say what is wrong with a folder before anything is computed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, about: Mapping[str, Any], model: CausalLM, tokenizer_json: str) -> "RunFolder":
        """A new folder with its run.json, config.json and tokenizer.json. Raises UsageError where `path` holds
        something already, RunFolderError where it cannot be written.
        """
        check_free(path)
        make_folder(path)
        save_config(path, model.config)
        write_text(path / TOKENIZER, tokenizer_json)
        write_json(path / RUN, {"format": FORMAT, **about})
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of an earlier run. Raises RunFolderError if it is none."""
        if not path.is_dir():
            raise RunFolderError(f"There is no run folder {path}. Give the folder that `torchane train` wrote.")
        about = read_json(path / RUN)
        if about.get("format") != FORMAT:
            raise RunFolderError(
                f"{path / RUN} has format {about.get('format')!r}, and this torchane reads format {FORMAT}. "
                "Use the version of torchane that wrote it."
            )
        return cls(path)

    def about(self) -> dict[str, Any]:
        """The content of run.json. Raises RunFolderError."""
        return read_json(self.path / RUN)

    def write_about(self, about: Mapping[str, Any]) -> None:
        write_json(self.path / RUN, about)

    def save(self, model: CausalLM, optimizer: torch.optim.AdamW, state: TrainState) -> None:
        """Writes the checkpoint, then the model for others to read. Raises RunFolderError; what was there stays."""
        save_checkpoint(self.path / TRAINING, model, optimizer, state)
        save_weights(self.path, model)

    def load(self, model: CausalLM, optimizer: torch.optim.AdamW) -> TrainState:
        """Puts the checkpoint into model and optimizer. Raises RunFolderError."""
        if not (self.path / TRAINING).exists():
            raise RunFolderError(
                f"{self.path} has no {TRAINING}: the run ended before its first checkpoint, or the file was removed. "
                "Train again with another --out."
            )
        return load_checkpoint(self.path / TRAINING, model, optimizer)

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """One line of JSON. Raises RunFolderError."""
        path = self.path / METRICS
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise write_error(path, error) from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines. A torn last line, left by a crash, is not one. Raises RunFolderError for others."""
        path = self.path / METRICS
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise read_error(path, error) from error
        try:
            lines = [json.loads(line) for line in text.split("\n")[:-1]]
            if not all(isinstance(line["step"], int) for line in lines):
                raise ValueError("a line has no step")
        except (ValueError, TypeError, KeyError) as error:
            raise read_error(path, error) from error
        return lines

    def cut_metrics(self, step: int) -> None:
        """Drops the lines after `step`, which resuming will write again. Raises RunFolderError."""
        kept = [line for line in self.read_metrics() if line["step"] <= step]
        write_text(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in kept))


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of the run folder `path`. Raises RunFolderError if it is missing or damaged."""
    try:
        return Tokenizer.load(path / TOKENIZER)
    except DataError as error:
        raise RunFolderError(str(error)) from error


def check_free(path: Path) -> None:
    """Raises UsageError if a new run may not go there, so that nothing of a user's is overwritten."""
    if (path / RUN).exists():
        raise UsageError(
            f"{path} holds a run already. Continue it with `torchane train --resume {path}`, or choose another --out."
        )
    if path.is_dir() and os.listdir(path):
        raise UsageError(f"{path} is not empty, and a run writes files of its own there. Choose another --out.")


def free_name(parent: Path, preset: str) -> Path:
    """parent/preset-1, or the first number that is free."""
    number = 1
    while (parent / f"{preset}-{number}").exists():
        number += 1
    return parent / f"{preset}-{number}"
