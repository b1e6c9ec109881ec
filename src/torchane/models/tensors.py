"""Tensor files: safetensors with a digest of everything they hold, written whole, and read as from a stranger.

    | length of the header, 8 B | header: JSON, padded to 8 B | float32 tensors in the order of their names |

The header's metadata has one key of ours, METADATA: {"about": {...}, "sha256": "..."}. The digest covers `about`, names, dtypes,
shapes and bytes. Whoever else writes safetensors leaves it out, and is taken at his word. The file is written here, piece by
piece and in one order, so that equal content is equal bytes and a full disk is an OSError. Source: safetensors, README, "Format".
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torchane.abi.numbers import FP16_MAX
from torchane.errors import RunFolderError, shown
from torchane.models.files import Writer, open_regular, parse_json, read_error, write_atomically

METADATA = "torchane"
#: Programs hold weights in fp16, and no trained model has larger ones; a flipped exponent gives 1e30.
LARGEST_WEIGHT = FP16_MAX
#: A file may say so; what follows is converted to float32.
DTYPES = ("F16", "BF16", "F32", "F64")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes float32 tensors and `about`, which is JSON, in place of `path`. Raises RunFolderError."""
    arrays = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
    own = {"about": about, "sha256": digest(about, arrays)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", METADATA: json.dumps(own, allow_nan=False)}}
    end = 0
    for name, tensor in arrays.items():
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(writer: Writer) -> None:
        writer(len(text).to_bytes(8, "little") + text)
        for tensor in arrays.values():
            writer(_bytes(tensor))

    write_atomically(path, write)


class TensorFile:
    """The header of a file, checked; tensors are read when they are asked for. Raises RunFolderError.

    about: what `save_tensors` was given, {} for a file of someone else's. shapes: by name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path, sys.maxsize):
                pass  # a pipe would be waited for, a device read for ever
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
                self._dtypes = {name: part.get_dtype() for name, part in slices.items()}
                self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
                stored = (file.metadata() or {}).get(METADATA)
            own = {"about": {}, "sha256": None} if stored is None else parse_json(stored)
            self.about, self._sha256 = own["about"], own["sha256"]
            if not isinstance(self.about, dict) or not isinstance(self._sha256, str | None):
                raise ValueError("what torchane wrote about it has other types")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise read_error(path, error) from error

    def read(self, keep: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
        """The tensors of these names, in float32. The digest, where there is one, is of all of them and is checked.
        Raises RunFolderError for a changed byte, for numbers that are not finite or beyond fp16, for other types.
        """
        for name, dtype in self._dtypes.items():
            if dtype not in DTYPES:
                raise RunFolderError(f"{self.path}: {shown(name)} is {shown(dtype)}, and a weight is one of {', '.join(DTYPES)}.")
        try:
            with safe_open(self.path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in self.shapes if self._sha256 or keep(name)}
        except (OSError, SafetensorError) as error:
            raise read_error(self.path, error) from error
        if self._sha256 is not None and digest(self.about, tensors) != self._sha256:
            raise RunFolderError(
                f"{self.path} is damaged: its content does not match the digest written with it. "
                "Copy it back from a backup, or train again."
            )
        kept = {name: tensor.float() for name, tensor in tensors.items() if keep(name)}
        for name, tensor in kept.items():
            _require_sound(name, tensor, self.path)
        return kept

    def require_shapes(self, needed: Mapping[str, tuple[int, ...]], beside: str) -> None:
        """Raises RunFolderError, which names three of them, where the file has other tensors than the model needs."""
        complaints = [f"{name} is missing" for name in needed if name not in self.shapes]
        complaints += [f"{shown(name)} belongs to no part of the model" for name in self.shapes if name not in needed]
        complaints += [
            f"{name} is {self.shapes[name]} and the model needs {shape}"
            for name, shape in needed.items()
            if name in self.shapes and self.shapes[name] != shape
        ]
        if complaints:
            more = f", and {len(complaints) - 3} more" if len(complaints) > 3 else ""
            raise RunFolderError(
                f"{self.path} does not fit the {beside} beside it: {'; '.join(complaints[:3])}{more}. "
                "Both files must come from the same model."
            )


def digest(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over `about` as JSON, and names, dtypes, shapes and bytes in the order of the names."""
    total = hashlib.sha256(json.dumps(about, sort_keys=True, allow_nan=False).encode())
    for name in sorted(tensors):
        total.update(f"\n{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        total.update(_bytes(tensors[name]))
    return total.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _require_sound(name: str, tensor: Tensor, path: Path) -> None:
    least, most = (float(end) for end in tensor.aminmax()) if tensor.numel() else (0.0, 0.0)
    if not -LARGEST_WEIGHT <= least <= most <= LARGEST_WEIGHT:  # a NaN compares as neither
        raise RunFolderError(
            f"{path}: {shown(name)} holds numbers from {least:g} to {most:g}, and a model that can be used has finite ones up to "
            f"{LARGEST_WEIGHT:,.0f}. The file is damaged, or its training went wrong: go back to another one."
        )
