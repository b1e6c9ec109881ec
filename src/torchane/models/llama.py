"""Llama in plain PyTorch, with Hugging Face's names.

    tokens ─► embed_tokens ─► N x [ x + attention(norm(x)) ; x + mlp(norm(x)) ] ─► norm ─► lm_head ─► logits

Nothing here knows of engines: `torch.compile(model, backend="ane")` takes it as it takes any module.
The model ends in logits, since the loss belongs to whoever trains. Weight names, the order of
computation and the rotary tables are those of transformers' LlamaForCausalLM, so files pass both ways.
Sources: Touvron et al. 2023, arXiv 2302.13971; initial weights as in karpathy/llama2.c, model.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchane.models.common import KeyValueCache, fetching, require_positions, several, undrawn_weights
from torchane.models.config import LlamaConfig


class LlamaRMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LlamaAttention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.queries_per_key = config.num_attention_heads // config.num_key_value_heads
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """x (B, S, C), cos and sin (S, D) -> (B, S, C). With a cache that is not empty, S is 1."""
        batch, seq_len, _ = x.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, seq_len, -1, self.head_dim).transpose(1, 2)

        q = rotate(heads(self.q_proj(x)), cos, sin)
        k = rotate(heads(self.k_proj(x)), cos, sin)
        v = heads(self.v_proj(x))
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        k, v = repeat_heads(k, self.queries_per_key), repeat_heads(v, self.queries_per_key)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=several(seq_len))
        return self.o_proj(attended.transpose(1, 2).reshape(batch, seq_len, -1))


class LlamaMLP(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaDecoderLayer(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, layer)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """tokens (B, S) integers -> (B, S, C)."""
        start = 0 if cache is None else cache.length
        end = start + tokens.shape[1]
        cos, sin = self.cos[start:end], self.sin[start:end]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin, cache)
        if cache is not None:
            cache.length = end
        return self.norm(x)


class LlamaForCausalLM(nn.Module):
    """The whole model. `seed` fixes the initial weights, which do not touch torch's global generator."""

    def __init__(self, config: LlamaConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with undrawn_weights():
            self.model = LlamaModel(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            self.adapt(config)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        with fetching(self):
            self.initialize(seed)

    def adapt(self, config: LlamaConfig) -> None:
        """For architectures that differ in some modules: they are replaced here, before any weight is drawn."""

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """tokens (B, S) integers -> logits (B, S, V) float32.
        Raises UsageError where the tokens reach beyond `max_position_embeddings`.
        """
        require_positions(self.config.max_position_embeddings, tokens, cache)
        return self.lm_head(self.model(tokens, cache))

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Normal weights of std `initializer_range`; what writes into the residual stream (o_proj, down_proj)
        is divided by sqrt(2 N), so that N layers start with the variance of one. Norms start at one.
        """
        generator = torch.Generator().manual_seed(seed)
        std = self.config.initializer_range
        residual_std = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0)
            else:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                weight.normal_(0.0, residual_std if into_residual else std, generator=generator)


def rotary_tables(config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """cos and sin (max_position_embeddings, D) float32, the D / 2 angles written twice as Hugging Face does.
    Source: Su et al. 2021, arXiv 2104.09864.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    angles = torch.outer(torch.arange(config.max_position_embeddings).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, S, D) turned by its position: entry i is paired with entry i + D / 2 (Hugging Face's order)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def repeat_heads(x: Tensor, times: int) -> Tensor:
    """(B, H, S, D) -> (B, H * times, S, D), every head `times` times in a row."""
    if times == 1:
        return x
    batch, heads, seq_len, head_dim = x.shape
    return x[:, :, None].expand(batch, heads, times, seq_len, head_dim).reshape(batch, heads * times, seq_len, head_dim)
