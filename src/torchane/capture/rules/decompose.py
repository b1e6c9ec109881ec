"""The decomposition table for AOTAutograd: what is taken apart before the rules see it.

Start from torch's core ATen table, and keep whole

- every op that has a rule: softmax, norms, activations and their gradients, `t`, `slice_backward`, ... one
  rule each is shorter, safer in fp16 and easier to recognise than the five to fifteen ops of a
  decomposition;
- what the host runs anyway and torch runs better in one piece: losses, embeddings, indexing, random numbers, and functions
  that torch writes as selections with a NaN or a logarithm in a branch (xlogy, logit, nan_to_num).

Without any table a 2-layer Llama (training, SDPA as math) is 220 forward and 340 backward calls of 40 ops;
with the core table 260 and 385, among them masks made from scores (`_safe_softmax` as eq, any, where), a
one-hot scatter for the loss and slice_scatter for RoPE's gradient. Kept whole, nothing of the kind appears,
and everything between embedding and logits has a rule. F.rms_norm is taken apart by autograd itself before
a table is asked: its gradient arrives as pow(rsqrt, 3), pow(x, 1), mul, sum.

Some are taken apart our own way. `native_dropout`: the draw on the host, from the same stream as eager;
the product in a program. Batch norm in training: the batch's moments in a program (mean and standard deviation); the
running averages through `_foreach_mul` and `_foreach_lerp`, which have no rule on purpose, so that they stay fp32 on the host.
The gradient of max_pool2d: from the input instead of the integer indices, which no program could hold.
Memory that nobody wrote (`torch.empty`) becomes zeros: a model that fills it slice by slice has it multiplied by zeros
where it is filled, and what lies there may be NaN. A tensor of infinities (`full_like(scores, -inf)`) becomes a constant, since
the rule that masks with it must see it. Fused attention is taken apart in both directions by attention.py. x ** -0.5 becomes rsqrt, whose cube in the gradient of a norm a pass knows to spread.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from torchane.capture.rules.attention import ATTENTION
from torchane.capture.rules.registry import RULES
from torchane.capture.torch_private import (
    DispatchKey,
    OperatorBase,
    OpOverload,
    core_aten_decompositions,
    disable_current_modes,
)

aten = torch.ops.aten

#: Overload packets that the host runs in one piece.
HOST_OPS = frozenset({
    aten.nll_loss_forward, aten.nll_loss_backward, aten.nll_loss2d_forward, aten.nll_loss2d_backward,
    aten.embedding_dense_backward, aten.index_add, aten.index_copy, aten.index_fill, aten._unsafe_index,
    aten._unsafe_index_put, aten.arange, aten.bernoulli, aten.one_hot, aten.linspace, aten.isin, aten.eye,
    aten.xlogy, aten.special_xlog1py, aten.logit, aten.logit_backward, aten.special_entr, aten.special_log_ndtr, aten.logaddexp,
    aten.logaddexp2, aten.nan_to_num, aten.nansum, aten.sinc,
    aten.multilabel_margin_loss_forward,  # torch's decomposition lets label 0 stand for what is behind the first -1
})  # fmt: skip


def decompositions() -> dict[OperatorBase, Callable[..., Any]]:
    """The table to hand to `aot_autograd(decompositions=)`."""
    table = {
        op: function
        for op, function in core_aten_decompositions().items()
        if op not in RULES and getattr(op, "overloadpacket", None) not in HOST_OPS
    }
    return {**table, **_OURS, **ATTENTION, **SOMETIMES}


@contextmanager
def wrong_formulas_left_out() -> Iterator[None]:
    """Of multilabel_margin_loss torch has a formula that no table is asked for, since every tracer meets it above autograd.
    It gives another loss and other gradients than the op (torch 2.13.0, under any compiler); without it the host runs the op."""
    op = aten.multilabel_margin_loss_forward.default
    formula = op.py_kernels.pop(DispatchKey.Autograd, None)
    op._dispatch_cache.clear()
    try:
        yield
    finally:
        if formula is not None:
            op.py_kernels[DispatchKey.Autograd] = formula
        op._dispatch_cache.clear()


def _native_dropout(x: torch.Tensor, p: float, train: bool | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(x * mask / (1 - p), mask), the mask drawn as eager's dropout draws it: numbers come in the order in which x lies
    in memory, so that a transposed x has another mask than a contiguous one."""
    if train is False or p == 0:
        return x.clone(), aten.ones.default(x.shape, dtype=torch.bool, device=x.device)
    if p == 1:
        return aten.zeros_like.default(x), aten.zeros.default(x.shape, dtype=torch.bool, device=x.device)
    strides = _strides_like(x)
    order = sorted(range(x.dim()), key=lambda axis: -strides[axis])
    blank = aten.empty.memory_format([x.shape[axis] for axis in order], dtype=torch.bool, device=x.device)
    mask = aten.bernoulli.p(blank, 1 - p)
    if order != sorted(order):
        mask = aten.permute.default(mask, [order.index(axis) for axis in range(x.dim())])
    return x * mask * (1 / (1 - p)), mask


@torch.library.custom_op("torchane::batch_moments", mutates_args=())
def _batch_moments(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(mean, standard deviation, 1 / sqrt(variance + eps)) over all axes but the channels'. The deviation leaves
    the program, not its square, which fp16 could not hold beyond 255; the host squares it."""
    variance, mean = torch.var_mean(x, [axis for axis in range(x.dim()) if axis != 1], correction=0)
    return mean, variance.sqrt(), (variance + eps).rsqrt()


@_batch_moments.register_fake
def _(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape[1]), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


batch_moments = torch.ops.torchane.batch_moments.default


def _batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """(y, mean, rstd, new running mean, new running variance); out of training mean and rstd are empty."""
    dtype = x.dtype
    x = x.to(running_mean.dtype)  # under autocast x comes in 16 bits, and statistics stay in 32
    if training:
        mean, deviation, rstd = batch_moments(x, eps)
        count = x.numel() // x.shape[1]
        variance = aten._foreach_mul.List([deviation], [deviation])
        unbiased = aten._foreach_mul.Scalar(variance, count / max(count - 1, 1))
        new_mean = aten._foreach_lerp.Scalar([running_mean], [mean], momentum)[0]
        new_var = aten._foreach_lerp.Scalar([running_var], unbiased, momentum)[0]
    else:
        mean, new_mean, new_var = running_mean, running_mean, running_var
        rstd = aten.rsqrt.default(running_var + eps)
    y = _normalised(x, mean, rstd, weight, bias)
    if not training:
        mean = rstd = x.new_empty((0,))
    return y.to(dtype), mean, rstd, new_mean, new_var


def _normalised(
    x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """(x - mean) * rstd * weight + bias, each a number per channel."""
    shape = [1, -1] + [1] * (x.dim() - 2)
    y = (x - mean.view(shape)) * rstd.view(shape)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def _batch_norm_without_averages(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[torch.Tensor, ...]:
    """(y, mean, rstd): what keeps no running averages normalises by the batch, in training and out of it."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean, _, rstd = batch_moments(wide, eps)
    return _normalised(wide, mean, rstd, weight, bias).to(x.dtype), mean, rstd


def _batch_norm_fixed(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    return _batch_norm(x, weight, bias, running_mean, running_var, False, momentum, eps)[:3]


@torch.library.custom_op("torchane::max_pool2d_backward", mutates_args=())
def _max_pool2d_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> torch.Tensor:
    """The gradient of max_pool2d from its input alone: no integer indices are kept from the forward."""
    window = (kernel_size, stride, padding, dilation, ceil_mode)
    return aten.max_pool2d_with_indices_backward(grad, x, *window, aten.max_pool2d_with_indices(x, *window)[1])


@_max_pool2d_backward.register_fake
def _(grad: torch.Tensor, x: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(x)


max_pool2d_backward = torch.ops.torchane.max_pool2d_backward.default


def _max_pool2d_without_indices(
    grad: torch.Tensor,
    x: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    indices: torch.Tensor,
) -> torch.Tensor:
    return max_pool2d_backward(grad, x, kernel_size, stride, padding, dilation, ceil_mode)


def _gradient_scaled_first(op: OpOverload) -> Callable[..., torch.Tensor]:
    """The gradient of a mean loss as that of a sum whose incoming gradient is divided by n. torch divides the difference,
    which the partitioner then keeps from the forward, where no loss scale reaches: 0.01 / 10^6 is no number in fp16."""

    def backward(grad: torch.Tensor, x: torch.Tensor, target: torch.Tensor, reduction: int, *rest: float) -> torch.Tensor:
        mean, total = 1, 2  # torch.nn._reduction
        if reduction != mean:
            return _TORCH[op](grad, x, target, reduction, *rest)
        return _TORCH[op](grad / x.numel(), x, target, total, *rest)

    return backward


def _huber(difference: torch.Tensor, reduction: int, delta: float, divisor: float) -> torch.Tensor:
    """m (|d| - m / 2) / divisor, m = min(|d|, delta): half the square below delta, a line above it, without a selection that
    squares what it leaves out."""
    size = difference.to(torch.promote_types(difference.dtype, torch.float32)).abs()
    least = size.clamp_max(delta)
    loss = (least * (size - 0.5 * least) / divisor).to(difference.dtype)
    return loss if reduction == 0 else loss.mean() if reduction == 1 else loss.sum()


def _huber_loss(x: torch.Tensor, target: torch.Tensor, reduction: int = 1, delta: float = 1.0) -> torch.Tensor:
    return _huber(x - target, reduction, delta, 1.0)


def _smooth_l1_loss(x: torch.Tensor, target: torch.Tensor, reduction: int = 1, beta: float = 1.0) -> torch.Tensor:
    return NotImplemented if beta == 0 else _huber(x - target, reduction, beta, beta)


def _filled(
    size: Sequence[int], value: float, dtype: torch.dtype | None, device: Any, stride: Sequence[int] | None = None
) -> torch.Tensor:
    """The axes lie in memory in the order of the strides; contiguous where these are not given."""
    order = sorted(range(len(size)), key=lambda axis: -stride[axis]) if stride is not None else list(range(len(size)))
    filled = aten.full.default([size[axis] for axis in order], value, dtype=dtype, device=device)
    if order == sorted(order):
        return filled
    return aten.permute.default(filled, [order.index(axis) for axis in range(len(size))])


def _empty(size: Sequence[int], *, dtype: Any = None, device: Any = None, memory_format: Any = None, **_: Any) -> torch.Tensor:
    return _filled(size, 0, dtype or torch.get_default_dtype(), device, _strides_of(size, memory_format))


def _empty_strided(
    size: Sequence[int], stride: Sequence[int], *, dtype: Any = None, device: Any = None, **_: Any
) -> torch.Tensor:
    return _filled(size, 0, dtype or torch.get_default_dtype(), device, stride)


def _strides_like(x: torch.Tensor, memory_format: torch.memory_format | None = None) -> tuple[int, ...]:
    """Of a new tensor like x, as torch says for tensors without memory."""
    with disable_current_modes():
        alike = torch.empty_strided(x.shape, x.stride(), device="meta")
        return torch.empty_like(alike, memory_format=memory_format or torch.preserve_format).stride()


def _strides_of(size: Sequence[int], memory_format: torch.memory_format | None) -> tuple[int, ...]:
    with disable_current_modes():
        return torch.empty(size, device="meta", memory_format=memory_format or torch.contiguous_format).stride()


def _empty_like(x: torch.Tensor, *, dtype: Any = None, device: Any = None, memory_format: Any = None, **_: Any) -> torch.Tensor:
    return _filled(x.shape, 0, dtype or x.dtype, device or x.device, _strides_like(x, memory_format))


def _new_empty(x: torch.Tensor, size: Sequence[int], *, dtype: Any = None, device: Any = None, **_: Any) -> torch.Tensor:
    return _filled(size, 0, dtype or x.dtype, device or x.device)


def _new_empty_strided(
    x: torch.Tensor, size: Sequence[int], stride: Sequence[int], *, dtype: Any = None, device: Any = None, **_: Any
) -> torch.Tensor:
    return _filled(size, 0, dtype or x.dtype, device or x.device, stride)


def _full_like(
    x: torch.Tensor, value: float, *, dtype: Any = None, device: Any = None, memory_format: Any = None, **_: Any
) -> torch.Tensor:
    if not isinstance(value, float) or not math.isinf(value):
        return NotImplemented
    return _filled(x.shape, value, dtype or x.dtype, device or x.device, _strides_like(x, memory_format))


def _new_full(
    x: torch.Tensor, size: Sequence[int], value: float, *, dtype: Any = None, device: Any = None, **_: Any
) -> torch.Tensor:
    if not isinstance(value, float) or not math.isinf(value):
        return NotImplemented
    return _filled(size, value, dtype or x.dtype, device or x.device)


def _celu(x: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """torch's formula takes exp of large numbers, too; elu's rule does not."""
    return aten.elu.default(x, alpha, 1.0, 1.0 / alpha)


def _power(x: torch.Tensor, exponent: float) -> torch.Tensor:
    if exponent not in (-0.5, -1.5) or not x.is_floating_point():
        return NotImplemented
    root = aten.rsqrt.default(x)
    return root if exponent == -0.5 else aten.pow.Tensor_Scalar(root, 3)


_TORCH = core_aten_decompositions()

_OURS: dict[OperatorBase, Callable[..., Any]] = {
    aten.native_dropout.default: _native_dropout,
    aten._native_batch_norm_legit_functional.default: _batch_norm,
    aten._native_batch_norm_legit.no_stats: _batch_norm_without_averages,
    aten.mse_loss_backward.default: _gradient_scaled_first(aten.mse_loss_backward.default),
    aten.huber_loss_backward.default: _gradient_scaled_first(aten.huber_loss_backward.default),
    aten._native_batch_norm_legit_no_training.default: _batch_norm_fixed,
    aten.celu.default: _celu,
    aten.huber_loss.default: _huber_loss,
    aten.smooth_l1_loss.default: _smooth_l1_loss,
    aten.max_pool2d_with_indices_backward.default: _max_pool2d_without_indices,
    aten.empty.memory_format: _empty,
    aten.empty_strided.default: _empty_strided,
    aten.empty_like.default: _empty_like,
    aten.new_empty.default: _new_empty,
    aten.new_empty_strided.default: _new_empty_strided,
}

#: Ops with a rule, taken apart for some arguments only: for others these give NotImplemented.
SOMETIMES: dict[OperatorBase, Callable[..., Any]] = {
    aten.full_like.default: _full_like,
    aten.new_full.default: _new_full,
    aten.pow.Tensor_Scalar: _power,
}
