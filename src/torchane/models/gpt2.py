"""GPT-2 in plain PyTorch, with Hugging Face's names.

    tokens ─► wte + wpe ─► N x [ x + attn(ln_1(x)) ; x + mlp(ln_2(x)) ] ─► ln_f ─► lm_head ─► logits
Linear layers keep OpenAI's order, weight (in, out), under transformers' names, so files pass both ways.
Sources: Radford et al. 2019; initial weights as in transformers' GPT2PreTrainedModel.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchane.errors import ParseError, UsageError


@dataclass(frozen=True)
class GPT2Config:
    """The keys of a GPT-2 `config.json`. Embeddings and head are tied, as in every GPT-2."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise UsageError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}. Change one of them.")

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`, as transformers' GPT2Config reads it."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new", **own}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config.json") -> "GPT2Config":
        """Raises ParseError naming the key that asks for what is not built here."""
        for key, only in (("activation_function", "gelu_new"), ("scale_attn_by_inverse_layer_idx", False)):
            if values.get(key, only) != only:
                raise ParseError(f"{source}: {key} is {values[key]!r}; the GPT-2 that is built here has {only!r}.")
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


class Conv1D(nn.Module):
    """x @ weight + bias, weight (in, out): the linear layer of OpenAI's files."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


class GPT2Attention(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.n_head, self.attn_pdrop = config.n_head, config.attn_pdrop
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, C) -> (B, S, C)"""
        batch, seq_len, channels = x.shape
        q, k, v = (
            part.view(batch, seq_len, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).split(channels, dim=2)
        )
        dropout = self.attn_pdrop if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.resid_dropout(self.c_proj(attended.transpose(1, 2).reshape(batch, seq_len, channels)))


class GPT2MLP(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.n_embd, 4 * config.n_embd)
        self.c_proj = Conv1D(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))


class GPT2Block(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2Model(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(GPT2Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, S) integers -> (B, S, C)."""
        x = self.drop(self.wte(tokens) + self.wpe.weight[: tokens.shape[1]])
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class GPT2LMHeadModel(nn.Module):
    """The whole model. `seed` fixes the initial weights, which do not touch torch's global generator."""

    def __init__(self, config: GPT2Config, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):  # torch's own layers draw weights that are overwritten below
            self.transformer = GPT2Model(config)
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        self.initialize(seed)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, S) integers -> logits (B, S, V) float32.
        Raises UsageError where the tokens reach beyond `n_positions`.
        """
        if tokens.shape[1] > self.config.n_positions:
            raise UsageError(
                f"The model was given {tokens.shape[1]} tokens and its n_positions is {self.config.n_positions}. "
                "Pass fewer, or build it with more positions."
            )
        return self.lm_head(self.transformer(tokens))

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Normal weights, smaller where a layer's output joins the residual stream; norms 1, biases 0."""
        generator = torch.Generator().manual_seed(seed)
        deep = self.config.initializer_range / math.sqrt(2 * self.config.n_layer)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                std = deep if name.endswith("c_proj.weight") else self.config.initializer_range
                weight.normal_(0.0, std, generator=generator)
