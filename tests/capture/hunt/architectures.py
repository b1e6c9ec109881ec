"""Small models of many of transformers' architectures, made from their configurations alone."""

from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
MASKED = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
PAIRS = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

#: By what their models are trained for. What is not here takes other inputs, or sizes that fit together in ways of its own; gpt_oss runs in
#: PyTorch (docs/limits.md).
NAMES = {
    "causal": (
        "afmoe", "apertus", "arcee", "aria_text", "bart", "beam", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "bitnet",
        "blenderbot", "blenderbot-small", "bloom", "camembert", "codegen", "cohere", "cohere2", "doge", "ernie4_5", "exaone4", "falcon",
        "falcon_mamba", "gemma", "glm4_moe", "gpt_bigcode", "gptj", "helium", "jamba", "jetmoe", "lfm2", "mamba", "minimax", "moshi", "mpt",
        "nemotron_h", "olmoe", "opt", "persimmon", "phimoe", "qwen3_next", "roformer", "rwkv",
    ),
    "masked": ("convbert", "flaubert", "fnet", "ibert", "mobilebert", "nystromformer", "xlm", "yoso"),
    "pairs": ("led", "m2m_100", "mvp", "pegasus_x", "umt5"),
}  # fmt: skip

#: Weights drawn from another seed than 0, with which two experts of a token nearly tie, so that fp16 sends it to the other (docs/limits.md).
_SEEDS = {"qwen3_next": 1}

#: What configurations call their sizes; each takes those that it has.
_SIZES: dict[str, Any] = {
    "vocab_size": 64, "max_position_embeddings": 64, "n_positions": 64, "sliding_window": 4, "attention_window": 8,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "hidden_dim", "dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2), "encoder_layers": 1, "decoder_layers": 1,
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff"), 48),
    **dict.fromkeys(("head_dim", "rotary_dim", "d_kv", "state_size", "mamba_d_state"), 8),
    "num_key_value_heads": 2, "embedding_size": 16, "mamba_d_conv": 4, "time_step_rank": 4, "expand": 2,
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4), "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False,
    **dict.fromkeys(
        ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
         "dropout", "resid_dropout", "dropout_rate", "activation_dropout"), 0.0,
    ),
}  # fmt: skip
#: Set although a fresh configuration holds None.
_ALSO = ("head_dim", "num_key_value_heads", "pad_token_id", "bos_token_id", "eos_token_id", "sliding_window")


def build(kind: str, name: str) -> nn.Module:
    """Two layers of width 32 with weights large enough to matter, in float32, without dropout."""
    made = getattr(transformers, {"causal": CAUSAL, "masked": MASKED, "pairs": PAIRS}[kind][name])
    fresh = made.config_class()
    sizes = {key: value for key, value in _SIZES.items() if hasattr(fresh, key) and (getattr(fresh, key) is not None or key in _ALSO)}
    sizes = {key: value for key, value in sizes.items() if getattr(getattr(type(fresh), key, None), "fset", True) is not None}
    kinds = list(dict.fromkeys(getattr(fresh, "layer_types", None) or ()))  # one layer of each at least
    if kinds and not isinstance(getattr(type(fresh), "layer_types", None), property):
        sizes["layer_types"] = (kinds * 2)[: max(2, len(kinds))]
        sizes |= {key: len(sizes["layer_types"]) for key in ("num_hidden_layers", "n_layer", "num_layers") if key in sizes}
    torch.manual_seed(_SEEDS.get(name, 0))
    model = made(made.config_class(**sizes)).float().train()
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.std() < 0.03:
            nn.init.normal_(parameter, std=0.08)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def batch() -> dict[str, torch.Tensor]:
    """Two sequences of tokens, the second padded."""
    tokens = torch.randint(3, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    seen = torch.ones_like(tokens)
    seen[1, 11:] = 0
    return {"input_ids": tokens, "attention_mask": seen, "labels": tokens.masked_fill(seen == 0, -100)}
