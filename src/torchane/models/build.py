"""Every architecture that is built here, by its config and by `config.json`'s model_type."""

from collections.abc import Mapping
from types import MappingProxyType

from torchane.errors import UsageError
from torchane.models.config import Config, GPT2Config, LlamaConfig, Qwen3Config
from torchane.models.gpt2 import GPT2LMHeadModel
from torchane.models.llama import LlamaForCausalLM
from torchane.models.qwen3 import Qwen3ForCausalLM
from torchane.plan.memory import free_bytes

FP32_BYTES = 4

#: Tokens (B, S), and a cache while decoding, to logits (B, S, V); `config` says the sizes.
CausalLM = LlamaForCausalLM | GPT2LMHeadModel

_MODELS: Mapping[type, type] = MappingProxyType({
    LlamaConfig: LlamaForCausalLM, Qwen3Config: Qwen3ForCausalLM, GPT2Config: GPT2LMHeadModel,
})  # fmt: skip


def build_model(config: Config, *, seed: int = 0, is_fake: bool = False) -> CausalLM:
    """The model of a config, with random weights. is_fake: its weights are fake tensors, which take no memory.
    Raises UsageError where this machine's memory cannot hold it."""
    needed, free = FP32_BYTES * (config.parameter_count + config.table_count), free_bytes()
    if not is_fake and free is not None and needed > free:
        raise UsageError(
            f"The model has {config.parameter_count:,} parameters and needs {needed / 2**30:,.1f} GiB; {free / 2**30:,.1f} GiB of "
            "memory are free. Choose a smaller one; if you did not expect one so large, its config.json is damaged."
        )
    return _MODELS[type(config)](config, seed=seed)
