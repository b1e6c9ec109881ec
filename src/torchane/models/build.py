"""Every architecture that is built here, by its config and by `config.json`'s model_type."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torchane.errors import ParseError, UsageError, shown
from torchane.models.config import Config, GPT2Config, LlamaConfig, Qwen3Config
from torchane.models.gpt2 import GPT2LMHeadModel
from torchane.models.llama import LlamaForCausalLM
from torchane.models.qwen3 import Qwen3ForCausalLM
from torchane.plan.memory import free_bytes

FP32_BYTES = 4

#: Tokens (B, S), and a cache while decoding, to logits (B, S, V); `config` says the sizes.
CausalLM = LlamaForCausalLM | GPT2LMHeadModel

ARCHITECTURES: Mapping[str, tuple[type, type]] = MappingProxyType({
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gpt2": (GPT2Config, GPT2LMHeadModel),
})


def read_config(values: Mapping[str, Any], *, source: str = "config.json") -> Config:
    """From the content of a `config.json`. Raises ParseError for another architecture."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ParseError(f"{source}: model_type is {shown(kind)}; built here are {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[kind][0].from_dict(values, source=source)


def build_model(config: Config, *, seed: int = 0) -> CausalLM:
    """The model of a config, with random weights. Raises UsageError where this machine's memory cannot hold it."""
    needed, free = FP32_BYTES * (config.parameter_count + config.table_count), free_bytes()
    if free is not None and needed > free:
        raise UsageError(
            f"The model has {config.parameter_count:,} parameters and needs {needed / 2**30:,.1f} GiB; {free / 2**30:,.1f} GiB of "
            "memory are free. Choose a smaller one; if you did not expect one so large, its config.json is damaged."
        )
    return next(model for kind, model in ARCHITECTURES.values() if type(config) is kind)(config, seed=seed)
