"""A two-layer Llama, written by hand, forward and backward: every node against torch in float64."""

import torch
from harness import check_model
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Norm, attention with fewer key-value heads and RoPE, norm, SwiGLU."""

    def __init__(self, hidden_size: int, num_attention_heads: int, num_key_value_heads: int, intermediate_size: int):
        super().__init__()
        self.num_attention_heads, self.num_key_value_heads = num_attention_heads, num_key_value_heads
        self.head_dim = hidden_size // num_attention_heads
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(hidden_size), nn.RMSNorm(hidden_size)
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x[..., : self.head_dim // 2], x[..., self.head_dim // 2 :]
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        h = self.input_layernorm(x)
        q, k = self.rope(self.heads(self.q_proj(h)), cos, sin), self.rope(self.heads(self.k_proj(h)), cos, sin)
        groups = self.num_attention_heads // self.num_key_value_heads
        k = k.repeat_interleave(groups, dim=1)
        v = self.heads(self.v_proj(h))
        v = v[:, :, None].expand(-1, -1, groups, -1, -1).reshape(q.shape)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(attended.transpose(1, 2).reshape(x.shape))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class Llama(nn.Module):
    def __init__(self, vocab_size: int = 48, hidden_size: int = 32, seq_len: int = 8, *, tied: bool):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)
        self.layers = nn.ModuleList(Block(hidden_size, 4, 2, 40) for _ in range(2))
        self.norm = nn.RMSNorm(hidden_size)
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight
        angles = torch.outer(torch.arange(seq_len), 1e4 ** (-torch.arange(4) / 4)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return F.cross_entropy(self.lm_head(self.norm(x)).flatten(0, 1), targets.flatten())


#: What a training step leaves to the host: looking up, and the loss.
HOST = {"aten.embedding.default", "aten.embedding_dense_backward.default", "aten.nll_loss_forward.default",
        "aten.nll_loss_backward.default"}  # fmt: skip


def test_every_float_op_of_a_llama_step_has_a_rule():
    torch.manual_seed(0)
    tokens = torch.randint(48, (2, 8))
    for tied in (False, True):
        checked, declined = check_model(Llama(tied=tied), tokens, tokens.roll(-1, 1))
        assert {op for op, reason in declined.items() if "int64" not in reason and "bool" not in reason} == HOST
        assert {"aten.mm.default", "aten.bmm.default", "aten.silu_backward.default"} <= checked
