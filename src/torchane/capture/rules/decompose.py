"""The decomposition table for AOTAutograd: what is taken apart before the rules see it.

Start from torch's core ATen table, and keep whole

- every op that has a rule: softmax, norms, activations and their gradients, `t`, `slice_backward`, ... one
  rule each is shorter, safer in fp16 and easier to recognise than the five to fifteen ops of a
  decomposition;
- what the host runs anyway and torch runs better in one piece: losses, embeddings, indexing, random numbers.

Without any table a 2-layer Llama (training, SDPA as math) is 220 forward and 340 backward calls of 40 ops;
with the core table 260 and 385, among them masks made from scores (`_safe_softmax` as eq, any, where), a
one-hot scatter for the loss and slice_scatter for RoPE's gradient. Kept whole, nothing of the kind appears,
and everything between embedding and logits has a rule. F.rms_norm is taken apart by autograd itself before
a table is asked: its gradient arrives as pow(rsqrt, 3), pow(x, 1), mul, sum.

Two ops are taken apart our own way. `native_dropout`: the draw on the host, from the same stream as eager;
the product in a program. Batch norm in training: the batch's moments in a program; the running averages
through `_foreach_lerp`, which has no rule on purpose, so that they stay fp32 on the host.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import core_aten_decompositions

from torchane.capture.rules.registry import RULES

aten = torch.ops.aten

#: Overload packets that the host runs in one piece.
HOST_OPS = frozenset({
    aten.nll_loss_forward, aten.nll_loss_backward, aten.nll_loss2d_forward, aten.nll_loss2d_backward,
    aten.embedding_dense_backward, aten.index_add, aten.index_copy, aten.index_fill, aten._unsafe_index,
    aten._unsafe_index_put, aten.arange, aten.bernoulli, aten.one_hot, aten.linspace, aten.isin, aten.eye,
})  # fmt: skip


def decompositions() -> dict[torch._ops.OperatorBase, Callable[..., Any]]:
    """The table to hand to `aot_autograd(decompositions=)`."""
    table = {
        op: function
        for op, function in core_aten_decompositions().items()
        if op not in RULES and getattr(op, "overloadpacket", None) not in HOST_OPS
    }
    return {**table, **_OURS}


def _native_dropout(x: torch.Tensor, p: float, train: bool | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(x * mask / (1 - p), mask), the mask drawn as eager's native_dropout draws it."""
    if train is False or p == 0:
        return x.clone(), aten.ones.default(x.shape, dtype=torch.bool, device=x.device)
    if p == 1:
        return aten.zeros_like.default(x), aten.zeros.default(x.shape, dtype=torch.bool, device=x.device)
    blank = aten.empty.memory_format(x.shape, dtype=torch.bool, device=x.device)
    mask = aten.bernoulli.p(blank, 1 - p)
    return x * mask * (1 / (1 - p)), mask


_OURS: dict[torch._ops.OperatorBase, Callable[..., Any]] = {aten.native_dropout.default: _native_dropout}
