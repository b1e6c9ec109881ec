"""The training state in one file, so that it is whole at one step or not there.

    training.safetensors    params/NAME, exp_avg/NAME, exp_avg_sq/NAME      float32
                            metadata: state and sha256 of all tensors, as JSON under one key

From it a run continues with the same bits. Nothing is pickled: a checkpoint from a stranger can hold
wrong numbers and nothing worse. The digest finds what a length check cannot, a changed byte.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from torchane.errors import RunFolderError
from torchane.models.files import read_error, write_atomically
from torchane.models.folder import copy_weights

MOMENTS = ("exp_avg", "exp_avg_sq")
METADATA = "torchane"


@dataclass
class TrainState:
    """Where a run stands after `step` optimizer steps."""

    step: int = 0
    recent_losses: list[float] = field(default_factory=list)  # since the last validation
    backend: Mapping[str, Any] = field(default_factory=dict)  # what the compiled model remembers: its loss scale


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.AdamW, state: TrainState) -> None:
    """Writes weights, moments and state as one file. Raises RunFolderError; an older file stays whole then."""
    tensors = {f"params/{name}": param.detach().contiguous() for name, param in model.named_parameters()}
    for name, param in model.named_parameters():
        for moment in MOMENTS if optimizer.state[param] else ():
            tensors[f"{moment}/{name}"] = optimizer.state[param][moment].contiguous()
    about = {"state": asdict(state), "sha256": digest(tensors)}
    metadata = {METADATA: json.dumps(about)}  # one key: several are written in a random order
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.AdamW) -> TrainState:
    """Puts weights and moments back and gives the state. Raises RunFolderError; nothing is changed then."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()[METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        state = TrainState(**about["state"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise read_error(path, error) from error
    if digest(tensors) != about["sha256"]:
        raise RunFolderError(
            f"{path} is damaged: its content does not match the digest written with it. "
            "Copy it back from a backup, or train again."
        )
    own = dict(model.named_parameters())
    moments = {
        name: {moment: torch.zeros_like(param) for moment in MOMENTS} for name, param in own.items() if state.step
    }
    slots = {f"params/{name}": param for name, param in own.items()}
    slots |= {f"{moment}/{name}": moments[name][moment] for name in moments for moment in MOMENTS}
    copy_weights(slots, tensors, source=path)
    for name, both in moments.items():
        optimizer.state[own[name]] = {"step": torch.tensor(float(state.step)), **both}
    return state


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
        total.update(tensors[name].numpy().reshape(-1).view("u1").data)
    return total.hexdigest()
