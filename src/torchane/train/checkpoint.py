"""The training state in one file, so that it is whole at one step or not there.

    training.safetensors    params/NAME, exp_avg/NAME, exp_avg_sq/NAME      float32
                            about: step, state, the files that belong to it (models/tensors.py), digest of all

From it a run continues with the same bits. Nothing is pickled: a checkpoint from a stranger can hold
wrong numbers and nothing worse. Its rename is the moment at which a checkpoint is there; `model.safetensors` repeats
the weights for others to read and is written again from here where it is not of the same step.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchane.errors import shown
from torchane.models.files import read_error
from torchane.models.folder import FILES, copy_weights
from torchane.models.tensors import TensorFile, save_tensors
from torchane.options import Range

MOMENTS = ("exp_avg", "exp_avg_sq")
PARAMS = "params/"
STEP = Range(0, 1 << 53)


@dataclass
class TrainState:
    """Where a run stands after `step` optimizer steps."""

    step: int = 0
    recent_losses: list[float] = field(default_factory=list)  # since the last validation
    backend: Mapping[str, Any] = field(default_factory=dict)  # what the compiled model remembers: its loss scale


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.AdamW, state: TrainState, files: Mapping[str, str]
) -> None:
    """Writes weights, moments and state as one file; `files` are the digests of what belongs to it.
    Raises RunFolderError; an older file stays whole then.
    """
    tensors = {f"{PARAMS}{name}": param for name, param in model.named_parameters()}
    for name, param in model.named_parameters():
        for moment in MOMENTS if optimizer.state[param] else ():
            tensors[f"{moment}/{name}"] = optimizer.state[param][moment]
    save_tensors(path, tensors, {"state": asdict(state), FILES: dict(files)})


def state_of(file: TensorFile) -> TrainState:
    """The state in a checkpoint's header. Raises RunFolderError where it is none."""
    try:
        state = TrainState(**file.about["state"])
        if not STEP.holds(state.step):
            raise ValueError(f"its step is {shown(state.step)}")
        if not isinstance(state.recent_losses, list) or not isinstance(state.backend, dict):
            raise ValueError("its state has other types")
        if not all(isinstance(loss, float) and math.isfinite(loss) for loss in state.recent_losses):
            raise ValueError("its losses are not finite numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise read_error(file.path, ValueError(f"it is no checkpoint of a run ({error})")) from error
    return state


def load_checkpoint(file: TensorFile, model: nn.Module, optimizer: torch.optim.AdamW) -> TrainState:
    """Puts weights and moments back and gives the state. Raises RunFolderError; nothing is changed then."""
    state = state_of(file)
    own = dict(model.named_parameters())
    moments = {
        name: {moment: torch.zeros_like(param) for moment in MOMENTS} for name, param in own.items() if state.step
    }
    slots = {f"{PARAMS}{name}": param for name, param in own.items()}
    slots |= {f"{moment}/{name}": moments[name][moment] for name in moments for moment in MOMENTS}
    file.require_shapes({name: tuple(slot.shape) for name, slot in slots.items()}, "config.json")
    copy_weights(slots, file.read())
    for name, both in moments.items():
        optimizer.state[own[name]] = {"step": torch.tensor(float(state.step)), **both}
    return state
