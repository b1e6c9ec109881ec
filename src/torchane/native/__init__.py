"""The C++ under torchane: the twin's kernels and the copies between host tensors and surfaces.

    from torchane import native
    native.set_threads(2)

Importing this package never fails. Where the extension was not built, the first use of one of its
functions raises DeviceError and says how to build it. The environment's TORCHANE_ISA names the instruction set of
the kernels (amx, avx512, avx2, base); without it the fastest that the processor has is taken.
"""

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from torchane.errors import DeviceError

_EXTENSION = "torchane.native._native"


def is_built() -> bool:
    """The extension can be loaded."""
    try:
        import_module(_EXTENSION)
    except ImportError:
        return False
    return True


def __getattr__(name: str) -> Any:
    """Everything of the extension, by its name there."""
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        extension = import_module(_EXTENSION)
    except ImportError as error:
        if find_spec(f"{__name__}.{name}") is not None:  # a module of this package, which Python looks for here first
            raise AttributeError(name) from None
        raise DeviceError(
            f"native.{name} needs torchane's compiled extension, and it cannot be loaded: {error}. "
            "Build it with `pip install .` (or `make`), which needs a C++20 compiler."
        ) from error
    _choose_isa(extension)
    found = globals()[name] = getattr(extension, name)  # found without this function from now on: dispatches use some of them
    return found


@cache
def _choose_isa(extension: ModuleType) -> None:
    """As the environment says, once."""
    if isa := os.environ.get("TORCHANE_ISA"):
        if isa not in extension.isas():
            raise DeviceError(
                f"TORCHANE_ISA is {isa!r}, and on this processor the twin has kernels for {', '.join(extension.isas())}. "
                "Name one of these, or unset it."
            )
        extension.set_isa(isa)
