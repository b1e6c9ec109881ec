"""GPT-2 in plain PyTorch, with Hugging Face's names.

    tokens ─► wte + wpe ─► N x [ x + attn(ln_1(x)) ; x + mlp(ln_2(x)) ] ─► ln_f ─► lm_head ─► logits
Linear layers keep OpenAI's order, weight (in, out), under transformers' names, so files pass both ways.
Sources: Radford et al. 2019; initial weights as in transformers' GPT2PreTrainedModel.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchane.models.common import KeyValueCache, fetching, require_positions, several, undrawn_weights
from torchane.models.config import GPT2Config


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
    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.attn_pdrop = config.n_head, config.attn_pdrop
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(B, S, C) -> (B, S, C). With a cache that is not empty, S is 1."""
        batch, seq_len, channels = x.shape
        q, k, v = (
            part.view(batch, seq_len, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).split(channels, dim=2)
        )
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        dropout = self.attn_pdrop if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=several(seq_len))
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
    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT2Model(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(GPT2Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """tokens (B, S) integers -> (B, S, C)."""
        start = 0 if cache is None else cache.length
        end = start + tokens.shape[1]
        x = self.drop(self.wte(tokens) + self.wpe.weight[start:end])
        for block in self.h:
            x = block(x, cache)
        if cache is not None:
            cache.length = end
        return self.ln_f(x)


class GPT2LMHeadModel(nn.Module):
    """The whole model. `seed` fixes the initial weights, which do not touch torch's global generator."""

    def __init__(self, config: GPT2Config, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with undrawn_weights():
            self.transformer = GPT2Model(config)
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        with fetching(self):
            self.initialize(seed)

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """tokens (B, S) integers -> logits (B, S, V) float32.
        Raises UsageError where the tokens reach beyond `n_positions`.
        """
        require_positions(self.config.n_positions, tokens, cache)
        return self.lm_head(self.transformer(tokens, cache))

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Normal weights, smaller where a layer's output joins the residual stream; norms 1, biases 0."""
        generator = torch.Generator().manual_seed(seed)
        deep = self.config.initializer_range / math.sqrt(2 * self.config.n_layer)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                std = deep if name.endswith("c_proj.weight") else self.config.initializer_range
                weight.normal_(0.0, std, generator=generator)
