"""The C++ under torchane: the twin's kernels and the copies between host tensors and surfaces.

    from torchane import native
    native.set_threads(2)

Importing this package never fails. Where the extension was not built, the first use of one of its
functions raises DeviceError and says how to build it.
"""

from importlib import import_module
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
        raise DeviceError(
            f"native.{name} needs torchane's compiled extension, and it cannot be loaded: {error}. "
            "Build it with `pip install .` (or `make`), which needs a C++20 compiler."
        ) from error
    return getattr(extension, name)
