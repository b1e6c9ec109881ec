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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
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
    """From disk, or worked out now and kept. Raises what `compile_step` does; a plan that failed is not kept."""
    if not cache:
        return _worked_out(request)
    key, files = request.key, kept_plans()
    found = files.get(key, lambda data: from_bytes(data, key))
    if found is None:
        found = _worked_out(request)
        files.put(key, to_bytes(found, key))
    return found


def _worked_out(request: Request) -> PlannedStep:
    compile_step = load("torchane.capture.plans").compile_step
    captured = compile_step(_builder(request.config, request.lora), batch_size=request.batch_size, seq_len=request.seq_len, options=request.options)
    return captured.outline


def _builder(config: Config, lora: int | None) -> Callable[[], Any]:
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
