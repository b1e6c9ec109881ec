"""What `torchane plan --preset` has worked out, on disk: the second time nothing is traced, and PyTorch is not even imported.

    Request  ──key──►  <caches>/plans/<version>/<key>.plan     ──►  PlannedStep, which is priced anew each time
                 └── not there: traced, differentiated, cut and lowered, and kept

The key is all that a plan depends on: the model's config, the shape of a batch, the backend's options, how adapters are made, what doctor found
wrong on this machine, Python, and the environment's variables of PyTorch's and ours. Source files, PyTorch and NumPy are the folder's name
(runtime/kept_files.py). Prices are not kept: constants that were fitted or measured since count at once.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torchane.cli.signals import load
from torchane.models.config import Config
from torchane.plan.outline import PlannedStep, from_bytes, to_bytes
from torchane.runtime.ane.cache import users_folder
from torchane.runtime.ane.doctor.record import wrong_on
from torchane.runtime.kept_files import KeptFiles

#: A plan takes 20 to 60 KB.
MOST_BYTES = 64 << 20
#: Of variables that may change what PyTorch traces, or what we make of it.
_VARIABLES = ("TORCH", "PYTORCH", "AOT", "FUNCTORCH")


@dataclass(frozen=True)
class Request:
    """A training step to plan. lora: the rank of adapters, None where all is trained. options: of the backend; the chip is in them."""

    config: Config
    batch_size: int
    seq_len: int
    lora: int | None
    options: Mapping[str, str]

    @property
    def key(self) -> str:
        """The digest of all that the plan depends on."""
        said = {
            "config": [type(self.config).__name__, asdict(self.config)],
            "shape": [self.batch_size, self.seq_len],
            "lora": self.lora,
            "options": dict(self.options),
            "wrong": wrong_on(self.options["chip"]),
            "python": [platform.python_implementation(), platform.python_version(), platform.machine(), platform.system()],
            "environment": {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)},
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def default_root() -> Path:
    """The folder of plans among the user's caches."""
    return users_folder() / "plans"


def kept_plans(root: Path | None = None) -> KeptFiles:
    return KeptFiles(root or default_root(), ".plan", MOST_BYTES, "plans", "the step is planned anew")


def planned_step(request: Request, *, cache: bool = True) -> PlannedStep:
    """From disk, or worked out now and kept. Raises what `compile_steps` does; a plan that failed is not kept."""
    return planned_steps([request], cache=cache)[0]


def planned_steps(requests: Sequence[Request], *, cache: bool = True) -> list[PlannedStep]:
    """`planned_step` of each. Requests that differ in the chip alone are traced once for all that are not on disk."""
    files = kept_plans() if cache else None
    keys = [request.key for request in requests]  # now: PyTorch writes variables of the environment when it is imported
    found = {key: files.get(key, partial(_read, key)) if files is not None else None for key in keys}
    missing: dict[Any, dict[str, Request]] = {}
    for key, request in zip(keys, requests, strict=True):
        if found[key] is None:
            rest = request.config, request.batch_size, request.seq_len, request.lora, *sorted((name, value) for name, value in request.options.items() if name != "chip")
            missing.setdefault(rest, {})[key] = request
    for alike in missing.values():
        for key, made in zip(alike, _worked_out(list(alike.values())), strict=True):
            found[key] = made
            if files is not None:
                files.put(key, to_bytes(made, key))
    return [found[key] for key in keys]  # type: ignore[misc]


def _read(key: str, data: bytes) -> PlannedStep:
    return from_bytes(data, key)


def _worked_out(requests: Sequence[Request]) -> list[PlannedStep]:
    """Of requests that differ in their options alone."""
    first, compile_steps = requests[0], load("torchane.capture.plans").compile_steps
    captured = compile_steps(
        builder(first.config, first.lora), batch_size=first.batch_size, seq_len=first.seq_len, options=[request.options for request in requests]
    )
    return [one.outline for one in captured]


def builder(config: Config, lora: int | None) -> Callable[[], Any]:
    """What makes the model, with adapters where a rank is given."""
    build = load("torchane.models.build").build_model
    with_adapters = load("torchane.models.adapted").with_adapters if lora is not None else None
    trace_blocks_once = load("torchane.train.engine").trace_blocks_once

    def made() -> Any:
        model = build(config, is_fake=True)
        if with_adapters is not None:
            model = with_adapters(model, lora)
        trace_blocks_once(model)
        return model

    return made
