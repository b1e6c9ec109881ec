"""The folder of a fine-tuning run: an adapter that PEFT and others read, and enough beside it to go on with the same bits.

    adapter_config.json  adapter_model.safetensors     as peft's save_pretrained writes them; full: a model's folder in their place
    0000100_adapter_model.safetensors                  the adapter of that iteration, at every --save-every
    training.json                                      base, settings, data, versions
    metrics.jsonl                                      one line an iteration and one a validation
    state/training.safetensors                         trained weights, the optimizer's numbers, iteration: what --resume reads

A checkpoint is there from the moment that state/training.safetensors is renamed; the adapter is written again from it where a
crash came between the two. Batches and the masks of dropout follow from seed and iteration, so neither needs a state.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchane.errors import RunFolderError, UsageError, shown
from torchane.finetune.adapters import ADAPTER, ADAPTER_CONFIG, is_adapted, trained
from torchane.finetune.extras import quiet_transformers
from torchane.models.files import json_digest, make_folder, open_regular, read_error, read_json, sync_file, write_atomically, write_error, write_json
from torchane.models.folder import CONFIG, WEIGHTS
from torchane.models.tensors import TensorFile, save_tensors
from torchane.train.checkpoint import PARAMS, STEP
from torchane.train.run_folder import METRICS, RunFolder

TRAINING = "training.json"
STATE = "state/training.safetensors"
FORMAT = 1
GRADIENT = "grad"
_SAVING = ".saving-"
#: Else PEFT asks the hub, at every save, whether the base's vocabulary has grown.
_ADAPTER_ALONE = {"save_embedding_layers": False}


@dataclass
class TuneState:
    """Where a run stands after `step` iterations and `updates` of the weights. losses and tokens: since the last report."""

    step: int = 0
    updates: int = 0
    trained_tokens: int = 0
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    backend: Mapping[str, Any] = field(default_factory=dict)  # what the compiled model remembers: its loss scales


class AdapterFolder:
    """One run's files. Raises RunFolderError where they cannot be written or are not what was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = RunFolder(path)  # of its files, metrics.jsonl alone

    def check_free(self) -> None:
        """Raises UsageError where something of the user's would be overwritten."""
        there = [name for name in (TRAINING, ADAPTER, ADAPTER_CONFIG, WEIGHTS, CONFIG, "adapters.safetensors", METRICS) if os.path.lexists(self.path / name)]
        if there:
            go_on = f" Continue it with --resume {self.path}, or" if TRAINING in there else ""
            raise UsageError(f"{self.path} holds {there[0]} already, and nothing is overwritten.{go_on or ' Please'} choose another --adapter-path.")

    def clear_leftovers(self) -> None:
        """Removes what a killed process was in the middle of writing."""
        for path in self.path.glob(f"{_SAVING}*"):
            shutil.rmtree(path)
        for path in (*self.path.glob(".*.partial"), *(self.path / STATE).parent.glob(".*.partial")):
            path.unlink()

    def create(self, about: Mapping[str, Any]) -> None:
        make_folder(self.path / "state")
        self.write_about(about)

    def write_about(self, about: Mapping[str, Any]) -> None:
        about = {"format": FORMAT, **about}
        write_json(self.path / TRAINING, {**about, "sha256": json_digest(about)})

    def about(self) -> dict[str, Any]:
        """The content of training.json. Raises RunFolderError where it was changed since it was written."""
        if not (self.path / TRAINING).exists():
            raise RunFolderError(f"{self.path} holds no run that could be resumed: it has no {TRAINING}. Give the --adapter-path of `torchane lora`.")
        about = read_json(self.path / TRAINING)
        digest = about.pop("sha256", None)
        if about.get("format") != FORMAT or digest != json_digest(about):
            raise RunFolderError(f"{self.path / TRAINING} was edited or damaged, or comes from another version of torchane, and a run continues as it was begun. Begin a new one.")
        return about

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: TuneState, dtype: torch.dtype | None) -> None:
        """Writes the checkpoint, then the adapter or model for others to read. dtype: of a whole model's weights in its file."""
        if (self.path / METRICS).exists():
            sync_file(self.path / METRICS)  # a checkpoint's rows are on the disk before it is
        tensors, rest = _gathered(model, optimizer)
        save_tensors(self.path / STATE, tensors, {"state": asdict(state), "optimizer": rest})
        self.publish(model, dtype)

    def publish(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        """Writes what others read, file by file whole: PEFT's adapter, or the model in `dtype`."""
        with self._beside() as folder:
            with _cast(model, dtype):
                model.save_pretrained(folder, **(_ADAPTER_ALONE if is_adapted(model) else {"max_shard_size": "1TB"}))  # type: ignore[operator]
            # the weights last: whoever sees them new sees their config
            for name in sorted(os.listdir(folder), key=lambda name: name.endswith(".safetensors")):
                if name == ADAPTER_CONFIG:  # sets come in any order
                    values = read_json(Path(folder, name))
                    write_json(self.path / name, {key: sorted(value) if key == "target_modules" and isinstance(value, list) else value for key, value in values.items()})
                elif name != "README.md":  # a form to fill in
                    copy_whole(Path(folder, name), self.path / name)

    def keep_tokenizer(self, tokenizer: Any) -> None:
        """A whole model's folder has its tokenizer, too."""
        with self._beside() as folder:
            tokenizer.save_pretrained(folder)
            for name in sorted(os.listdir(folder)):
                copy_whole(Path(folder, name), self.path / name)

    @contextmanager
    def _beside(self) -> Iterator[str]:
        """A folder that others write to first. Raises RunFolderError where they cannot."""
        try:
            with tempfile.TemporaryDirectory(dir=self.path, prefix=_SAVING) as folder, quiet_transformers():
                yield folder
        except OSError as error:
            raise write_error(self.path, error) from error

    def keep_copy(self, step: int) -> None:
        """The adapter as it is now, under its iteration's number."""
        copy_whole(self.path / ADAPTER, self.path / f"{step:07d}_{ADAPTER}")

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> TuneState | None:
        """Puts the checkpoint into model and optimizer; None where the run ended before its first. Raises RunFolderError."""
        if not (self.path / STATE).exists():
            return None
        file = TensorFile(self.path / STATE)
        try:
            state = TuneState(**file.about["state"])
            rest = file.about["optimizer"]
            if not (STEP.holds(state.step) and STEP.holds(state.updates) and isinstance(state.backend, dict) and isinstance(rest, dict)):
                raise ValueError(f"its iteration is {shown(state.step)}")
        except (KeyError, TypeError, ValueError) as error:
            raise read_error(file.path, ValueError(f"it is no checkpoint of a fine-tuning run ({error})")) from error
        _restore(model, optimizer, file, state, rest)
        return state


def copy_whole(source: Path, target: Path) -> None:
    """Puts the content of a file in place of another, at once."""

    def write(writer: Any) -> None:
        with open_regular(source, 1 << 50) as file:
            while part := file.read(16 << 20):
                writer(part)

    write_atomically(target, write)


def _gathered(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors of a checkpoint by name, and what the optimizer keeps besides. Its step is not among them: every parameter has as many as
    there were updates. A gradient is there between two updates alone."""
    tensors: dict[str, torch.Tensor] = {}
    rest: dict[str, Any] = {}
    for name, param in trained(model).items():
        tensors[f"{PARAMS}{name}"] = param
        if param.grad is not None:
            tensors[f"{GRADIENT}/{name}"] = param.grad
        for key, value in optimizer.state.get(param, {}).items():
            if key == "step":
                continue
            if isinstance(value, torch.Tensor):
                tensors[f"{key}/{name}"] = value
            else:
                rest.setdefault(key, {})[name] = value
    return tensors, rest


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, file: TensorFile, state: TuneState, rest: Mapping[str, Any]) -> None:
    """Raises RunFolderError, with nothing changed, where the tensors are not those of this model."""
    own = trained(model)
    for name, param in own.items():
        if file.shapes.get(f"{PARAMS}{name}") != tuple(param.shape):
            raise RunFolderError(f"{file.path} has no {name} of shape {tuple(param.shape)}: it belongs to another base or other settings.")
    stored = file.read()
    with torch.no_grad():
        for name, param in own.items():
            param.copy_(stored[f"{PARAMS}{name}"])
            gradient = stored.get(f"{GRADIENT}/{name}")
            param.grad = None if gradient is None else gradient.clone()
            kept = {full.partition("/")[0]: value.clone() for full, value in stored.items() if full.partition("/")[2] == name}
            kept = {key: value for key, value in kept.items() if key not in (PARAMS[:-1], GRADIENT)}
            kept |= {key: values[name] for key, values in rest.items() if name in values}
            if state.updates:
                optimizer.state[param] = {**({"step": torch.tensor(float(state.updates))} if _has_step(optimizer) else {}), **kept}


def _has_step(optimizer: torch.optim.Optimizer) -> bool:
    return isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW | torch.optim.Adafactor)


@contextmanager
def _cast(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, the model's weights have this type; the trained ones are back, to the bit, afterwards."""
    if dtype in (None, torch.float32) or is_adapted(model):
        yield
        return
    before = {name: param.data for name, param in model.named_parameters()}
    try:
        for param in model.parameters():
            param.data = param.data.to(dtype)
        yield
    finally:
        for name, param in model.named_parameters():
            param.data = before[name]
