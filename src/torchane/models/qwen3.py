"""Qwen3 in plain PyTorch, with Hugging Face's names: a Llama whose queries and keys are normed per head.

    q = rotate(q_norm(q_proj(x)))   k = rotate(k_norm(k_proj(x)))   the norms act over head_dim
Source: Qwen team 2025, arXiv 2505.09388, section 2; weight names of transformers' Qwen3ForCausalLM.
"""

import torch.nn.functional as F
from torch import Tensor

from torchane.models.common import KeyValueCache, several
from torchane.models.config import LlamaConfig
from torchane.models.llama import LlamaAttention, LlamaForCausalLM, LlamaRMSNorm, repeat_heads, rotate


class Qwen3Attention(LlamaAttention):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.q_norm = LlamaRMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = LlamaRMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """x (B, S, C), cos and sin (S, D) -> (B, S, C). With a cache that is not empty, S is 1."""
        batch, seq_len, _ = x.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, seq_len, -1, self.head_dim)

        q = rotate(self.q_norm(heads(self.q_proj(x))).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(heads(self.k_proj(x))).transpose(1, 2), cos, sin)
        v = heads(self.v_proj(x)).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        k, v = repeat_heads(k, self.queries_per_key), repeat_heads(v, self.queries_per_key)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=several(seq_len))
        return self.o_proj(attended.transpose(1, 2).reshape(batch, seq_len, -1))


class Qwen3ForCausalLM(LlamaForCausalLM):
    """The whole model: Llama's, with Qwen3's attention in every layer."""

    def adapt(self, config: LlamaConfig) -> None:
        for layer, block in enumerate(self.model.layers):
            block.self_attn = Qwen3Attention(config, layer)
