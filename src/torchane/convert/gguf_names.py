"""What GGUF calls the parts of the models that are written and read here, by architecture.

    model.layers.3.self_attn.q_proj.weight  <->  blk.3.attn_q.weight       llama: its rows in the order of rotary.py

Sources: gguf-py, tensor_mapping.py; llama.cpp, conversion/llama.py, conversion/qwen.py.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from torchane.convert import rotary
from torchane.convert.model import (
    ATTENTION_NORM, DOWN, EMBEDDING, GATE, HEAD, K, MLP_NORM, NORM, O, Q, UP, V, Model, Shape, layer_name, llama_shapes,
)  # fmt: skip
from torchane.errors import UsageError

Q_NORM, K_NORM = "self_attn.q_norm.weight", "self_attn.k_norm.weight"
_TOP = {EMBEDDING: "token_embd.weight", NORM: "output_norm.weight", HEAD: "output.weight"}
_LAYER = {
    ATTENTION_NORM: "attn_norm.weight", Q: "attn_q.weight", K: "attn_k.weight", V: "attn_v.weight", O: "attn_output.weight",
    MLP_NORM: "ffn_norm.weight", GATE: "ffn_gate.weight", UP: "ffn_up.weight", DOWN: "ffn_down.weight",
}  # fmt: skip
_HEAD_NORMS = {Q_NORM: "attn_q_norm.weight", K_NORM: "attn_k_norm.weight"}
_BIASES = {name.replace("weight", "bias"): _LAYER[name].replace("weight", "bias") for name in (Q, K, V)}
ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class Architecture:
    """name: general.architecture. kind: config.json's model_type. turns: q and k have their rows in neighbours.
    extra: what its layers have besides those of a Llama. ollama_adapters: whether Ollama takes a LoRA for it."""

    name: str
    kind: str
    class_name: str
    turns: bool
    extra: dict[str, str]
    ollama_adapters: bool

    @property
    def layer(self) -> dict[str, str]:
        return {**_LAYER, **self.extra}

    def shapes(self, model: Model, *, is_tied: bool) -> dict[str, Shape]:
        """Every weight that a model of this architecture and config has."""
        heads = {"num_key_value_heads": model.kv_heads, "head_dim": model.head_dim}
        shapes = llama_shapes({**model.config, **heads}, is_tied=is_tied)
        for layer in range(model.size("num_hidden_layers")):
            for name in self.extra:
                rows = layer_name(layer, name.replace("bias", "weight"))
                shapes[layer_name(layer, name)] = (model.head_dim,) if name in _HEAD_NORMS else shapes[rows][:1]
        return shapes


ARCHITECTURES = (
    Architecture("llama", "llama", "LlamaForCausalLM", True, {}, True),
    Architecture("llama", "mistral", "MistralForCausalLM", True, {}, True),
    Architecture("qwen2", "qwen2", "Qwen2ForCausalLM", False, _BIASES, False),
    Architecture("qwen3", "qwen3", "Qwen3ForCausalLM", False, _HEAD_NORMS, False),
)
_ARCHITECTURES_BY_KIND = {architecture.kind: architecture for architecture in ARCHITECTURES}


def architecture_of(model: Model) -> Architecture:
    """Raises UsageError for a model that is not written as GGUF here."""
    found = _ARCHITECTURES_BY_KIND.get(model.kind)
    if found is None:
        raise UsageError(
            f"{model.source} is {model.kind}; torchane writes GGUF for {', '.join(_ARCHITECTURES_BY_KIND)}. Export it with --to hf, and convert that "
            "folder with llama.cpp's convert_hf_to_gguf.py."
        )
    return found


def to_gguf(name: str, architecture: Architecture) -> str | None:
    """GGUF's name of a weight; None where it has none."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if found is None:
        return _TOP.get(name)
    inner = architecture.layer.get(found[2])
    return None if inner is None else f"blk.{int(found[1])}.{inner}"


def from_gguf(name: str, architecture: Architecture) -> str | None:
    """The inverse."""
    found = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    if found is None:
        return next((own for own, theirs in _TOP.items() if theirs == name), None)
    inner = next((own for own, theirs in architecture.layer.items() if theirs == found[2]), None)
    return None if inner is None else layer_name(int(found[1]), inner)


def heads_turned(name: str, model: Model, architecture: Architecture) -> int | None:
    """For a weight (or a LoRA's B) whose rows GGUF has in another order: the heads that it is made of."""
    if not architecture.turns:
        return None
    if name.endswith((Q, Q.replace("weight", "bias"))):
        return model.size("num_attention_heads")
    return model.kv_heads if name.endswith((K, K.replace("weight", "bias"))) else None


def turned(values: Tensor, heads: int | None, turn: Callable[[Tensor, int], Tensor] = rotary.to_neighbours) -> Tensor:
    return values if heads is None else turn(values, heads)
