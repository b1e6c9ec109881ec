"""A model with an adapter in it, through PEFT, whatever tool wrote the adapter."""

import tempfile
from pathlib import Path
from typing import Any

from torchane.convert import peft, recognize
from torchane.convert.adapter import Adapter, require_fits
from torchane.convert.model import Model, Weights
from torchane.errors import ParseError, UsageError
from torchane.finetune.extras import quiet_transformers, require
from torchane.finetune.models import Base


def with_adapter(base: Base, path: Path) -> Any:
    """The base's own model, its layers wrapped by PEFT's: PEFT's model around it would leave what is compiled out.
    Raises UsageError, ParseError where the adapter belongs to another model, or is no adapter."""
    described = _described(base)
    adapter = recognize.read_adapter(path, described)
    require_fits(adapter, described)
    if adapter.whole:
        return _load(base, path, adapter)
    with tempfile.TemporaryDirectory() as folder:
        peft.write(adapter, Path(folder))
        return _load(base, Path(folder), adapter)


def _load(base: Base, folder: Path, adapter: Adapter) -> Any:
    if not (folder / peft.WEIGHTS).exists():
        raise UsageError(f"{adapter.source} holds whole weights: merge it first, torchane fuse.")
    with quiet_transformers():
        return require("peft").PeftModel.from_pretrained(base.model, folder).eval().get_base_model()


def _described(base: Base) -> Model:
    """The base's config and weights, as convert/ looks at them."""
    config = base.model.config.to_dict()
    named = {name: weight.detach() for name, weight in base.model.named_parameters()}
    if not named:
        raise ParseError(f"{base.path} has no weights.")
    return Model(config, Weights({name: tuple(weight.shape) for name, weight in named.items()}, named.__getitem__, str(base.path)), {}, str(base.path))
