"""A run folder: everything about one training run, readable by others and enough to continue.

    config.json  model.safetensors  tokenizer*.json    the model, as Hugging Face lays it out
    training.safetensors                               weights, moments and step, to resume from
    metrics.jsonl                                      one line a step and one a validation
    run.json                                           command, versions, seed, device, settings, data

Every file but the metrics is replaced whole (models/files.py). A checkpoint is there from the moment that
training.safetensors is renamed: model.safetensors repeats its weights and is made again from it where a crash came between the
two. Metrics are appended line by line; resuming puts them in order. What may not be changed unnoticed has a digest. The fields:
docs/run-folder.md.
"""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from torchane.data.tokenizer import FOR_TRANSFORMERS, Tokenizer
from torchane.errors import DataError, RunFolderError, UsageError, shown
from torchane.models.build import CausalLM
from torchane.models.files import (
    Writer,
    json_digest,
    make_folder,
    open_regular,
    open_to_append,
    parse_json,
    read_error,
    read_json,
    sync_file,
    whole_lines,
    write_all,
    write_atomically,
    write_error,
    write_json,
    write_text,
)  # fmt: skip
from torchane.models.folder import (
    CONFIG,
    FILES,
    TOKENIZER,
    WEIGHTS,
    load_config,
    load_model,
    model_of,
    require_files,
    save_config,
    save_weights,
)  # fmt: skip
from torchane.models.tensors import TensorFile
from torchane.options import ARITHMETICS, RECOMPUTE
from torchane.train.checkpoint import PARAMS, STEP, TrainState, load_checkpoint, save_checkpoint, state_of
from torchane.train.lock import LOCK

RUN = "run.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TRAINING = "training.safetensors"
METRICS = "metrics.jsonl"
DAMAGED_METRICS = "metrics.damaged.jsonl"
FORMAT = 2
LARGEST_METRICS_BYTES = 16 << 30
_LARGEST_LINE_BYTES = 1 << 16


class RunFolder:
    """One run's files. `create` and `open` say what is wrong with a folder before anything is computed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, about: Mapping[str, Any], model: CausalLM, tokenizer_json: str | None) -> "RunFolder":
        """A new folder with its run.json, config.json and, for text, the tokenizer. Raises UsageError where `path` holds
        something already, RunFolderError where it cannot be written.
        """
        check_free(path)
        make_folder(path)
        save_config(path, model.config)
        if tokenizer_json is not None:
            write_text(path / TOKENIZER, tokenizer_json)
            write_text(path / TOKENIZER_CONFIG, json.dumps(FOR_TRANSFORMERS, indent=2))
        folder = cls(path)
        folder.write_about(about)
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of an earlier run. Raises RunFolderError if it is none."""
        if not path.is_dir():
            raise RunFolderError(f"There is no run folder {path}. Give the folder that `torchane train` wrote.")
        folder = cls(path)
        folder.about()
        return folder

    def about(self) -> dict[str, Any]:
        """The content of run.json. Raises RunFolderError where it was changed since it was written."""
        about = read_json(self.path / RUN)
        if about.get("format") != FORMAT:
            raise RunFolderError(
                f"{self.path / RUN} has format {shown(about.get('format'))}, and this torchane reads format {FORMAT}. "
                "Use the version of torchane that wrote it."
            )
        if about.pop("sha256", None) != json_digest(about):
            raise RunFolderError(
                f"{self.path / RUN} does not match the digest written with it: it was edited or damaged, and a run continues as it "
                "was begun. Copy it back from a backup; for other settings begin a new run."
            )
        return about

    def write_about(self, about: Mapping[str, Any]) -> None:
        about = {"format": FORMAT, **about}
        write_json(self.path / RUN, {**about, "sha256": json_digest(about)})

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of the files without which the weights mean nothing. Raises RunFolderError."""
        names = [name for name in (CONFIG, TOKENIZER) if (self.path / name).exists()]
        return {name: json_digest(read_json(self.path / name)) for name in names}

    def save(self, model: CausalLM, optimizer: torch.optim.AdamW, state: TrainState) -> None:
        """Writes the checkpoint, then the model for others to read. Raises RunFolderError; what was there stays."""
        if (self.path / METRICS).exists():
            self._sync_metrics()  # a checkpoint's rows are on the disk before it is
        save_checkpoint(self.path / TRAINING, model, optimizer, state, self.digests)
        self._save_weights(model, state.step)

    def has_checkpoint(self) -> bool:
        """False where a run ended before its first. Raises RunFolderError where there was one and it is gone."""
        if not (self.path / TRAINING).exists() and (self.path / WEIGHTS).exists():
            raise RunFolderError(
                f"{self.path} has no {TRAINING}, and a run that wrote a {WEIGHTS} had one: it was removed. Copy it back from a "
                "backup, or train again with another --out."
            )
        return (self.path / TRAINING).exists()

    def load(self, model: CausalLM, optimizer: torch.optim.AdamW) -> TrainState:
        """Puts the checkpoint into model and optimizer. Raises RunFolderError."""
        file = TensorFile(self.path / TRAINING)
        state_of(file)
        require_files(self.path, file)
        return load_checkpoint(file, model, optimizer)

    def renew_weights(self, model: CausalLM, step: int) -> bool:
        """Writes model.safetensors again where it does not hold the model's weights; True if so. Raises RunFolderError."""
        try:
            file = TensorFile(self.path / WEIGHTS)
            weights = file.read()
            is_current = file.about.get("step") == step and all(
                name in weights and torch.equal(weights[name], param) for name, param in model.named_parameters()
            )
        except RunFolderError:  # missing, damaged, or something else in its place: the checkpoint has all of it
            is_current = False
        if not is_current:
            self._save_weights(model, step)
        return not is_current

    def _save_weights(self, model: CausalLM, step: int) -> None:
        save_weights(self.path, model, {"step": step, FILES: self.digests})

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """One line of JSON. Raises RunFolderError."""
        path = self.path / METRICS
        try:
            descriptor = open_to_append(path)
            try:
                write_all(descriptor, json.dumps(line).encode() + b"\n")
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise write_error(path, error) from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of all lines that can be read. Raises RunFolderError where there is no file to read."""
        return [row for _, row in self._metrics_lines() if row is not None]

    def check_metrics(self) -> None:
        """Raises RunFolderError where the metrics are a pipe, a folder, ... in a file's place."""
        for _ in self._metrics_lines():
            break

    def repair_metrics(self, step: int) -> str | None:
        """Drops the rows after `step`, which resuming will write again, and those that are there twice; puts the rest in
        order. Says so where lines cannot be read: all of the file is then kept beside it. Raises RunFolderError.
        """
        kept: dict[tuple[int, str], bytes] = {}
        unread = 0
        for line, row in self._metrics_lines():
            if row is None:
                unread += 1
            elif row["step"] <= step:
                kept[row["step"], row["kind"]] = line
        path, copy = self.path / METRICS, self.path / DAMAGED_METRICS
        if unread:
            write_atomically(copy, lambda writer: _copy(path, writer))
        ordered = b"".join(kept[key] + b"\n" for key in sorted(kept))  # "step" comes before "validation"
        write_atomically(path, lambda writer: writer(ordered))
        if not unread:
            return None
        lines = "1 line" if unread == 1 else f"{unread:,} lines"
        return f"{path}: {lines} could not be read and were left out. The file as it was is {copy}."

    def _metrics_lines(self) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
        """Every whole line, and its row if it is one. A torn last line, left by a crash, is none."""
        path = self.path / METRICS
        if not os.path.lexists(path):
            return
        try:
            with open_regular(path, LARGEST_METRICS_BYTES) as file:
                for line in whole_lines(file, _LARGEST_LINE_BYTES):
                    yield line or b"", None if line is None else _row(line)
        except (OSError, ValueError) as error:
            raise read_error(path, error) from error

    def _sync_metrics(self) -> None:
        try:
            sync_file(self.path / METRICS)
        except OSError as error:
            raise write_error(self.path / METRICS, error) from error


def load_run_model(path: Path) -> CausalLM:
    """The model of a run's newest checkpoint, or of any model folder, to write with. Raises RunFolderError."""
    if (path / TRAINING).exists():
        file = TensorFile(path / TRAINING)
        if not (path / WEIGHTS).exists() or _step(TensorFile(path / WEIGHTS)) < state_of(file).step:
            require_files(path, file)  # a crash came before the weights were written for others
            return model_of(load_config(path), file, path, prefix=PARAMS).eval()
    return load_model(path)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of the run folder `path`. Raises RunFolderError if it is missing or damaged."""
    if not (path / TOKENIZER).exists() and path.is_dir():
        raise RunFolderError(
            f"{path / TOKENIZER} does not exist, and text needs one. A run that was trained on tokens (.bin) has one only if "
            "--tokenizer named it; other folders had it removed: copy it back from a backup."
        )
    try:
        return Tokenizer.load(path / TOKENIZER)
    except DataError as error:
        raise RunFolderError(str(error)) from error


def check_about(about: Mapping[str, Any], source: Path) -> None:
    """Raises RunFolderError for the first value of run.json that is missing or has another type than docs/run-folder.md says."""
    data = about.get("data")
    data = data if isinstance(data, Mapping) else {}
    checks = {
        "preset": isinstance(about.get("preset"), str),
        "arithmetic": about.get("arithmetic") in ARITHMETICS,
        "ranges": about.get("ranges") in ("auto", "on", "off"),
        "recompute": about.get("recompute", "none") in RECOMPUTE,
        "provenance": isinstance(about.get("provenance"), list),
        "settings": isinstance(about.get("settings"), Mapping),
        "data.path": "path" in data and isinstance(data["path"], str | None) and "\0" not in (data["path"] or ""),
        "data.size_bytes": "size_bytes" in data and (data["size_bytes"] is None or STEP.holds(data["size_bytes"])),
        "data.sha256": isinstance(data.get("sha256"), str),
    }
    wrong = [name for name, is_right in checks.items() if not is_right]
    if wrong:
        raise RunFolderError(
            f"{source}: {wrong[0]} is missing or of another type: it was edited or damaged. Copy it back from a backup."
        )


def check_free(path: Path) -> None:
    """Raises UsageError if a new run may not go there, so that nothing of a user's is overwritten."""
    if os.path.lexists(path / RUN):
        raise UsageError(
            f"{path} holds a run already. Continue it with `torchane train --resume {shlex.quote(str(path))}`, or choose another --out."
        )
    if path.is_dir() and set(os.listdir(path)) - {LOCK}:
        raise UsageError(f"{path} is not empty, and a run writes files of its own there. Choose another --out.")


def reserve(parent: Path, preset: str) -> Path:
    """Makes parent/preset-1, or the first number that is free: no two processes get one name. Raises RunFolderError."""
    make_folder(parent)
    number = 1
    while True:
        path = parent / f"{preset}-{number}"
        try:
            if not os.path.lexists(path):
                path.mkdir()
                return path
        except FileExistsError:
            pass  # another process took the name just now
        except OSError as error:
            raise write_error(path, error) from error
        number += 1


def remove_empty(path: Path) -> None:
    """Of a folder that nothing was written into."""
    if path.is_dir() and not os.listdir(path):
        path.rmdir()


def _row(line: bytes) -> dict[str, Any] | None:
    """What a line of the metrics says; None if it is damaged."""
    try:
        row = parse_json(line.decode())
    except ValueError:
        return None
    is_row = isinstance(row, dict) and STEP.holds(row.get("step")) and row.get("kind") in ("step", "validation")
    return row if is_row else None


def _copy(path: Path, writer: Writer) -> None:
    with open_regular(path, LARGEST_METRICS_BYTES) as file:
        while part := file.read(1 << 20):
            writer(part)


def _step(file: TensorFile) -> float:
    """The step of a weight file that torchane wrote; someone else's is newer than any."""
    step = file.about.get("step", float("inf"))
    return step if STEP.holds(step) else float("inf")
