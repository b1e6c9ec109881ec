"""What `torch.compile(..., backend="ane", options={...}, mode=...)` may say."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchane import options
from torchane.capture.torch_private import list_mode_options
from torchane.errors import TorchaneWarning, UsageError
from torchane.passes import pass_list
from torchane.runtime.device import Device


@dataclass(frozen=True)
class Options(options.record("BackendOptions", "backend")):  # type: ignore[misc]
    """Its options: the rows of torchane/options.py for "backend", each with its help."""

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "Options":
        values = options.parse("backend", given, "torch.compile(backend='ane')")
        without = values["without"].split(",") if isinstance(values["without"], str) else values["without"]
        made = cls(**{**values, "without": tuple(name.strip() for name in without if name.strip())})
        pass_list(control=True, without=made.without)  # an unknown name is refused before anything is compiled
        return made

    def wants_ranges(self, device: Device) -> bool:
        return self.ranges == "on" or (self.ranges == "auto" and device.arithmetic == "engine")


def check_mode(mode: str | None) -> None:
    """torch's modes choose among Inductor's ways to compile; here there is one."""
    if mode in (None, "default"):
        return
    known = list_mode_options()
    if mode not in known:
        raise UsageError(f"torch.compile has no mode {mode!r}. Its modes are {', '.join(known)}.")
    warnings.warn(
        f"mode={mode!r} tunes PyTorch's own compiler and changes nothing for backend=\"ane\", which has one way to "
        "compile a graph. Leave it out.",
        TorchaneWarning,
        stacklevel=2,
    )
