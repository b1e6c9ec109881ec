"""Every architecture that is built here, by its config and by `config.json`'s model_type."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from torchane.errors import ParseError, UsageError
from torchane.models.config import LlamaConfig, Qwen3Config
from torchane.models.gpt2 import GPT2Config, GPT2LMHeadModel
from torchane.models.llama import LlamaForCausalLM
from torchane.models.presets import PRESETS
from torchane.models.qwen3 import Qwen3ForCausalLM

Config = LlamaConfig | Qwen3Config | GPT2Config

ARCHITECTURES: Mapping[str, tuple[type, type]] = MappingProxyType({
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gpt2": (GPT2Config, GPT2LMHeadModel),
})

#: Published models by name, beside the presets that `torchane train` knows.
PUBLISHED: Mapping[str, Config] = MappingProxyType({
    "gpt2": GPT2Config(),
})


def named_config(name: str) -> Config:
    """The config of a preset or a published model. Raises UsageError that lists the names there are."""
    if name in PRESETS:
        return PRESETS[name].config
    if name not in PUBLISHED:
        raise UsageError(f"There is no model {name!r}. The models are {', '.join([*PRESETS, *PUBLISHED])}.")
    return PUBLISHED[name]


def read_config(values: Mapping[str, Any], *, source: str = "config.json") -> Config:
    """From the content of a `config.json`. Raises ParseError for another architecture."""
    kind = values.get("model_type")
    if kind not in ARCHITECTURES:
        raise ParseError(f"{source}: model_type is {kind!r}; built here are {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[kind][0].from_dict(values, source=source)


def build_model(config: Config, *, seed: int = 0) -> nn.Module:
    """The model of a config, with random weights."""
    return next(model for kind, model in ARCHITECTURES.values() if type(config) is kind)(config, seed=seed)
