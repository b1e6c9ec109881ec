"""Fused attention, taken apart into products and a softmax, forward and backward.

    p = softmax(scale q k^T + mask)        dv = p^T dy               ds = p (dp - sum(dp p)),  dp = dy v^T
    y = p v                                dq = scale ds k           dk = scale ds^T q

A model that chooses its kernel (`torch.nn.attention.sdpa_kernel`) is traced as one of the ops below. Their backwards read
the log-sum-exp that their forwards save. torch's own table takes only the forward of the CPU's apart, and has the
probabilities in that place. Here both directions come from the same formula, the backward from q, k and v alone, so that
it matters to neither what the other saved; where torch's partitioner sees both, they share the probabilities. The
log-sum-exp is computed for those who read it themselves.

Shapes: q (B, H, L, E), k (B, K, S, E), v (B, K, S, F), H a multiple of K; a causal mask keeps s <= l, counted from the
first query and key. A row that sees nothing gets zeros, and 0 as log-sum-exp, as in torch's CPU kernel.
Source: Dao et al. 2022, arXiv 2205.14135, appendix B.2.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchane.capture.torch_private import OperatorBase, OpOverload
from torchane.errors import CaptureError

aten = torch.ops.aten


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    """(softmax of the scores, scores), each (B, H, L, S). Half of the scale goes to either factor, as in torch's formula,
    so that both stay in range."""
    half = math.sqrt(_scale(q, scale))
    scores = aten.matmul.default(q * half, _repeated(k, q).transpose(-2, -1) * half)
    if is_causal:
        kept = aten.tril.default(torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device))
        low = torch.full((), -torch.inf, dtype=q.dtype, device=q.device)
        scores = scores + torch.where(kept, torch.zeros((), dtype=q.dtype, device=q.device), low)
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
        scores = scores + mask
    masked = is_causal or mask is not None
    return (aten._safe_softmax.default(scores, -1) if masked else aten._softmax.default(scores, -1, False)), scores


def _scale(q: Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def _repeated(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values once for every head of queries."""
    times = q.shape[-3] // x.shape[-3]
    if times == 1:
        return x
    *batch, heads, length, size = x.shape
    return x.unsqueeze(-3).expand(*batch, heads, times, length, size).reshape(*batch, heads * times, length, size)


def _summed(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of `_repeated`."""
    times = gradient.shape[-3] // x.shape[-3]
    if times == 1:
        return gradient
    *batch, heads, length, size = x.shape
    return gradient.reshape(*batch, heads, times, length, size).sum(-3)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    """(y (B, H, L, F), its heads inside its tokens in memory as CUDA kernels have it; log-sum-exp of the scores (B, H, L), at least
    float32)."""
    y, logsumexp = _results(q, k, v, mask, is_causal, scale)
    return y.transpose(-3, -2).contiguous().transpose(-3, -2), logsumexp


def _results(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    """The same, y in whatever order the product has."""
    p, scores = _probabilities(q, k, mask, is_causal, scale)
    y = aten.matmul.default(p, _repeated(v, q))
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    logsumexp = aten.logsumexp.default(wide, [-1])
    if mask is not None:  # asked of the mask: programs hold a large number in the place of its infinities
        sees_nothing = ~mask if mask.dtype == torch.bool else mask == -torch.inf
        logsumexp = logsumexp.masked_fill(sees_nothing.all(-1), 0.0)
    return y, logsumexp


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v and of the scores (B, H, L, S)."""
    p, _ = _probabilities(q, k, mask, is_causal, scale)
    factor = _scale(q, scale)
    dv = aten.matmul.default(p.transpose(-2, -1), grad)
    dp = aten.matmul.default(grad, _repeated(v, q).transpose(-2, -1))
    ds = aten._softmax_backward_data.default(dp, p, -1, p.dtype)
    dq = aten.matmul.default(ds, _repeated(k, q)) * factor
    dk = aten.matmul.default(ds.transpose(-2, -1), q) * factor
    return dq, _summed(dk, k), _summed(dv, v), ds


def _without_dropout(op: OpOverload, dropout_p: float) -> None:
    """A fused kernel draws its mask with a generator of the GPU's, which nothing here can repeat."""
    if dropout_p != 0:
        raise CaptureError(
            f"{op} with dropout_p {dropout_p}: fused attention with dropout draws its mask from a GPU's random numbers, and "
            "torch's CPU kernel refuses it too. Let torch choose the kernel (no sdpa_kernel around it), or use "
            "SDPBackend.MATH, whose dropout programs can hold."
        )


def _cpu(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *,
    attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _without_dropout(aten._scaled_dot_product_flash_attention_for_cpu.default, dropout_p)
    y, logsumexp = _results(q, k, v, attn_mask, is_causal, scale)
    order = sorted(range(q.dim()), key=lambda axis: -q.stride(axis))  # the CPU's kernel lays its result out as q
    return y.permute(order).contiguous().permute([order.index(axis) for axis in range(q.dim())]), logsumexp


def _cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, dropout_p: float, is_causal: bool, *,
    attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _backward(grad, q, k, v, attn_mask, is_causal, scale)[:3]


def _unused(q: Tensor) -> Tensor:
    """Stands for the state of a random generator that nothing draws from."""
    return torch.zeros((), dtype=torch.long, device=q.device)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, return_debug_mask: bool = False, *,
    scale: float | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    _without_dropout(aten._scaled_dot_product_flash_attention.default, dropout_p)
    y, logsumexp = _forward(q, k, v, None, is_causal, scale)
    blank = torch.zeros(0, dtype=q.dtype, device=q.device)
    return y, logsumexp, None, None, q.shape[-2], k.shape[-2], _unused(q), _unused(q), blank


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, cum_seq_q: Any, cum_seq_k: Any,
    max_q: int, max_k: int, dropout_p: float, is_causal: bool, seed: Any, offset: Any, *, scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _backward(grad, q, k, v, None, is_causal, scale)[:3]


def _efficient(
    q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None, compute_log_sumexp: bool, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The kernel's log-sum-exp is padded to a multiple of 32 queries."""
    _without_dropout(aten._scaled_dot_product_efficient_attention.default, dropout_p)
    y, logsumexp = _forward(q, k, v, attn_bias, is_causal, scale)
    if compute_log_sumexp:
        logsumexp = aten.constant_pad_nd.default(logsumexp, [0, -q.shape[-2] % 32], torch.inf)
    else:
        logsumexp = logsumexp.new_zeros((*logsumexp.shape[:-1], 0))
    return y, logsumexp, _unused(q), _unused(q)


def _efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None, out: Tensor, logsumexp: Tensor, seed: Any,
    offset: Any, dropout_p: float, grad_input_mask: Sequence[bool], is_causal: bool = False, *, scale: float | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    *found, ds = _backward(grad, q, k, v, attn_bias, is_causal, scale)
    gradients = (*found, None if attn_bias is None else _as_bias(ds, attn_bias))
    return tuple(gradient if wanted else None for gradient, wanted in zip(gradients, grad_input_mask, strict=True))


def _as_bias(ds: Tensor, bias: Tensor) -> Tensor:
    """Summed over the axes along which the bias was stretched."""
    return aten.sum_to_size.default(ds, list(bias.shape))


def _cudnn(
    q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None, compute_log_sumexp: bool, dropout_p: float = 0.0,
    is_causal: bool = False, return_debug_mask: bool = False, *, scale: float | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    _without_dropout(aten._scaled_dot_product_cudnn_attention.default, dropout_p)
    y, logsumexp = _forward(q, k, v, attn_bias, is_causal, scale)
    return y, logsumexp.unsqueeze(-1), None, None, q.shape[-2], k.shape[-2], _unused(q), _unused(q), None


def _cudnn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, seed: Any, offset: Any,
    attn_bias: Tensor | None, cum_seq_q: Any, cum_seq_k: Any, max_q: int, max_k: int, dropout_p: float, is_causal: bool, *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _backward(grad, q, k, v, attn_bias, is_causal, scale)[:3]


def _overrideable(
    q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    return_debug_mask: bool = False, *, scale: float | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    _without_dropout(aten._scaled_dot_product_fused_attention_overrideable.default, dropout_p)
    y, logsumexp = _forward(q, k, v, attn_bias, is_causal, scale)
    return y, logsumexp, None, None, q.shape[-2], k.shape[-2], _unused(q), _unused(q), None


def _overrideable_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None, grad_input_mask: Sequence[bool], out: Tensor,
    logsumexp: Tensor, cum_seq_q: Any, cum_seq_k: Any, max_q: int, max_k: int, dropout_p: float, is_causal: bool, seed: Any,
    offset: Any, *, scale: float | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    return _efficient_backward(
        grad, q, k, v, attn_bias, out, logsumexp, seed, offset, dropout_p, grad_input_mask, is_causal, scale=scale
    )


#: Both directions of every name; one without the other would read what the other does not give.
ATTENTION: dict[OperatorBase, Callable[..., Any]] = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: _cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _cpu_backward,
    aten._scaled_dot_product_flash_attention.default: _flash,
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    aten._scaled_dot_product_efficient_attention.default: _efficient,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    aten._scaled_dot_product_cudnn_attention.default: _cudnn,
    aten._scaled_dot_product_cudnn_attention_backward.default: _cudnn_backward,
    aten._scaled_dot_product_fused_attention_overrideable.default: _overrideable,
    aten._scaled_dot_product_fused_attention_overrideable_backward.default: _overrideable_backward,
}
