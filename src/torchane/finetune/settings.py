"""What a fine-tuning run was asked for: mlx-lm's names and defaults, from the command line, a YAML file, or neither.

    --batch-size 2 ─┐ wins
    batch_size: 3 ──┼─► LoraSettings(batch_size=2, ...)          a key that is not known, or not supported, is refused by name
    default: 4 ─────┘

Rank, scale, dropout, keys, the schedule of the learning rate and the optimizer's own numbers stand in the file alone, as in
mlx-lm. Source: mlx-lm 0.32.2, lora.py (CONFIG_DEFAULTS) and LORA.md.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torchane.errors import UsageError, nearest, shown
from torchane.finetune.extras import require
from torchane.models.files import read_text
from torchane.options import ARITHMETICS, NUMBERS, Range, real

#: What mlx-lm takes and torchane does not, and why; a run that asks for one is refused.
UNSUPPORTED: Mapping[str, str] = {
    "clear_cache_threshold": "it empties Metal's cache, and there is none here",
    "trust_remote_code": "code that comes with a model is never run",
    "hf_dataset": "data sets on the hub are not fetched; write them as train.jsonl and valid.jsonl",
    "wandb": "newer versions of mlx-lm say report_to: wandb, and so does torchane",
}
OPTIMIZERS = ("adam", "adamw", "sgd", "adafactor", "muon")
TYPES = ("lora", "dora", "full")
#: Settings that are one of a few names.
_CHOICES = {"fine_tune_type": TYPES, "optimizer": OPTIMIZERS, "arithmetic": ARITHMETICS}
BITS = (4, 8)
#: Names of what a line of a jsonl holds, as mlx-lm lets a file rename them.
FEATURES = ("prompt_feature", "completion_feature", "text_feature", "chat_feature")
_RANK, _SCALE, _DROPOUT = Range(1, 1 << 16), real(0, 1e6, above=True), real(0, 0.999)


@dataclass(frozen=True)
class LoraParameters:
    """rank: of each pair of matrices. scale: what their product is multiplied by, PEFT's alpha / rank. keys: the modules that get
    one, relative to a block or absolute; None: every linear layer of a block."""

    rank: int = 8
    scale: float = 20.0
    dropout: float = 0.0
    keys: tuple[str, ...] | None = None


@dataclass(frozen=True)
class LoraSettings:
    """Everything that decides the numbers of a run, but for model, data and device. A step here is an iteration: one batch of
    batch_size examples; an update of the weights comes every grad_accumulation_steps of them. quantize: bits that the base's linear layers are kept in;
    None: as in their file. packing: several examples in one row of a batch. arithmetic: of the twin."""

    fine_tune_type: str = "lora"
    optimizer: str = "adam"
    optimizer_config: Mapping[str, Any] = field(default_factory=dict)
    mask_prompt: bool = False
    packing: bool = False
    num_layers: int = 16
    batch_size: int = 4
    iters: int = 1000
    val_batches: int = 25
    learning_rate: float = 1e-5
    steps_per_report: int = 10
    steps_per_eval: int = 200
    grad_accumulation_steps: int = 1
    save_every: int = 100
    test_batches: int = 500
    max_seq_length: int = 2048
    grad_checkpoint: bool = False
    seed: int = 0
    quantize: int | None = None
    arithmetic: str = "exact"
    lora_parameters: LoraParameters = LoraParameters()
    lr_schedule: Mapping[str, Any] | None = None
    features: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LoraSettings":
        """What `to_dict` gave, after JSON. Raises TypeError where it is something else."""
        parameters = dict(values["lora_parameters"])
        keys = parameters.pop("keys")
        return cls(**{**values, "lora_parameters": LoraParameters(**parameters, keys=None if keys is None else tuple(keys))})


#: Of the command and not of the numbers; a file may say them too.
PLACES = ("model", "data", "adapter_path", "resume_adapter_file", "report_to", "project_name", "train", "test", "config")


def resolve(given: Mapping[str, Any], config: Path | None) -> tuple[LoraSettings, dict[str, Any]]:
    """The settings, and what was said of PLACES. given: what the command line said, None where it did not. config: a YAML file.
    Raises UsageError for a key or value that is not taken.
    """
    said = {} if config is None else read_config(config)
    where = "the command line" if config is None else str(config)
    merged = {**said, **{name: value for name, value in given.items() if value is not None}}
    known = {each.name for each in fields(LoraSettings)} - {"features"}
    for name in merged:
        if name in UNSUPPORTED and merged[name]:
            raise UsageError(f"{where}: {name} is not supported: {UNSUPPORTED[name]}.")
        if name not in known and name not in (*PLACES, *FEATURES, *UNSUPPORTED):
            raise UsageError(f"{where}: unknown key {name}{nearest(name, known)}. Known: {', '.join(sorted((*known, *PLACES, *FEATURES)))}.")
    values = {name: _checked(name, value) for name, value in merged.items() if name in known and value is not None}
    optimizer = values.get("optimizer", LoraSettings.optimizer)
    values["optimizer_config"] = _of_optimizer(values.get("optimizer_config"), optimizer)
    values["features"] = {name: _name(name, merged[name]) for name in FEATURES if merged.get(name)}
    settings = LoraSettings(**values)
    _check_together(settings)
    return settings, {name: merged.get(name) for name in PLACES if name != "config"}


def _check_together(settings: LoraSettings) -> None:
    if settings.optimizer == "muon" and settings.fine_tune_type != "lora":
        raise UsageError(f"optimizer muon updates matrices alone, and {settings.fine_tune_type} trains vectors too. Choose adam or adamw.")
    if settings.quantize and settings.fine_tune_type == "full":
        raise UsageError("quantize keeps a base that is frozen in few bits, and full trains it. Choose lora or dora.")
    if settings.num_layers == 0:
        raise UsageError("num_layers is 0, and then nothing is trained. Give how many of the last blocks to train, or -1 for all.")
    for name in ("val_batches", "test_batches"):
        if getattr(settings, name) == 0:
            raise UsageError(f"{name} is 0. Give how many batches to take, or -1 for all of them.")
    if settings.fine_tune_type == "dora" and settings.lora_parameters.dropout:
        raise UsageError("lora_parameters: dropout is not there for dora, whose norm of each row needs the whole product. Set it to 0.")


def read_config(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, numbers such as 1e-5 included. Raises UsageError naming the line."""
    yaml = require("yaml")
    text = read_text(path) if path.is_file() else None
    if text is None:
        raise UsageError(f"--config {path}: there is no such file.")

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined, misc]
        """YAML 1.1 takes 1e-5 for text: it wants 1.0e-5."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))
    try:
        found = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UsageError(f"{path} holds {shown(found)}, and it must hold names and values, as in batch_size: 4.")
    return {key.replace("-", "_"): value for key, value in found.items()}


def _checked(name: str, value: Any) -> Any:
    """Raises UsageError where a setting does not take the value."""
    if name in NUMBERS:
        value = float(value) if not NUMBERS[name].whole and isinstance(value, int) and not isinstance(value, bool) else value
        NUMBERS[name].require(name, value)
        return value
    if name == "quantize":
        if str(value) not in map(str, BITS):
            raise UsageError(f"quantize is {shown(value)}. Known: {', '.join(map(str, BITS))}, the bits of a weight.")
        return int(value)
    if name in _CHOICES:
        allowed = _CHOICES[name]
        value = value.lower() if isinstance(value, str) else value
        if value not in allowed:
            raise UsageError(f"{name} is {shown(value)}. Known: {', '.join(allowed)}.")
        return value
    if name in ("mask_prompt", "packing", "grad_checkpoint"):
        if not isinstance(value, bool):
            raise UsageError(f"{name} is {shown(value)}, and it is true or false.")
        return value
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} is {shown(value)}, and it must hold names and values.")
    return _lora_parameters(value) if name == "lora_parameters" else dict(value)


def _lora_parameters(value: Mapping[str, Any]) -> LoraParameters:
    known = {each.name for each in fields(LoraParameters)}
    unknown = sorted(map(str, set(value) - known))
    if unknown:
        hint = " (scale is alpha / rank)" if "alpha" in unknown else nearest(unknown[0], known)
        raise UsageError(f"lora_parameters: unknown key {unknown[0]}{hint}. Known: {', '.join(sorted(known))}.")
    made = {**asdict(LoraParameters()), **value}
    for name, allowed in (("rank", _RANK), ("scale", _SCALE), ("dropout", _DROPOUT)):
        allowed.require(f"lora_parameters: {name}", made[name])
    keys = made["keys"]
    if keys is not None and not (isinstance(keys, list | tuple) and keys and all(isinstance(key, str) for key in keys)):
        raise UsageError(f"lora_parameters: keys is {shown(keys)}, and it must be a list of names of modules, as in [self_attn.q_proj].")
    return LoraParameters(made["rank"], float(made["scale"]), float(made["dropout"]), None if keys is None else tuple(keys))


def _of_optimizer(config: Any, optimizer: str) -> dict[str, Any]:
    """mlx-lm's optimizer_config has an entry for each optimizer; that of the one in use."""
    named = config or {}
    unknown = sorted(set(map(str, named)) - set(OPTIMIZERS))
    if unknown:
        raise UsageError(f"optimizer_config: unknown optimizer {unknown[0]}{nearest(unknown[0], OPTIMIZERS)}. Known: {', '.join(OPTIMIZERS)}.")
    own = named.get(optimizer) or {}
    if not isinstance(own, Mapping):
        raise UsageError(f"optimizer_config: {optimizer} is {shown(own)}, and it must hold names and values.")
    return dict(own)


def _name(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} is {shown(value)}, and it is the name of a key in a line of the data.")
    return value
