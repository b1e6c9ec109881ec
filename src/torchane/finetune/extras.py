"""The packages that only fine-tuning needs, and their voices: `pip install "torchane[finetune]"`."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torchane.errors import UsageError

EXTRA = 'pip install "torchane[finetune]"'


def require(name: str) -> Any:
    """The module of that name. Raises UsageError, which says what to install, where it is not there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"The package {name.partition('.')[0]} is needed for this and cannot be imported ({error}). Install it: {EXTRA}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, transformers and its friends write no progress bars and no advice of their own; what is wrong is our error to tell."""
    logging = require("transformers").utils.logging
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def require_other(name: str) -> Any:
    """The module of a package that is in no extra of ours. Raises UsageError, which says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"The package {name} was asked for and cannot be imported ({error}). Install it: pip install {name}") from error
