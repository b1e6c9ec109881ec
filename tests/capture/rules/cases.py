"""Arguments for every rule: one function per form of call, drawn from random sizes.

    @case(aten.addcmul.default)
    def _(r): return given(r.x(), r.x(), r.row(), value=0.5)

test_every_rule.py runs them, one test for each rule of the registry: a rule without a case fails there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from torchane.capture import vocabulary_ops
from torchane.capture.rules.decompose import batch_moments, max_pool2d_backward

aten = torch.ops.aten
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Draw:
    """Tensors of one random size (N, C, H, W), their entries from one generator."""

    sizes: tuple[int, int, int, int]
    generator: torch.Generator

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.sizes[:3]

    def x(self, *shape: int) -> torch.Tensor:
        """Between -3 and 3, no two entries equal but by chance."""
        return torch.rand(shape or self.shape, generator=self.generator) * 6 - 3

    def positive(self, *shape: int) -> torch.Tensor:
        return self.x(*shape).abs() + 0.125

    def row(self) -> torch.Tensor:
        """Broadcasts against x; away from zero, so that a division stays within fp16."""
        return self.positive(self.shape[-1])

    def mask(self) -> torch.Tensor:
        return self.x() > 0

    def image(self) -> torch.Tensor:
        n, c, h, w = self.sizes
        return self.x(n, c, h + 4, w + 4)


CASES: dict[torch._ops.OpOverload, list[Callable[[Draw], Call]]] = {}


def given(*args: Any, **kwargs: Any) -> Call:
    return args, kwargs


def case(*targets: torch._ops.OpOverload) -> Callable[[Callable[[Draw], Call]], Callable[[Draw], Call]]:
    def add(make: Callable[[Draw], Call]) -> Callable[[Draw], Call]:
        for target in targets:
            CASES.setdefault(target, []).append(make)
        return make

    return add


# Arithmetic and functions of one number

case(
    aten.neg.default, aten.abs.default, aten.sign.default, aten.sgn.default, aten.exp.default, aten.exp2.default,
    aten.expm1.default, aten.erf.default, aten.erfc.default, aten.sin.default, aten.cos.default, aten.atan.default,
    aten.sinh.default, aten.cosh.default, aten.square.default, aten.hardtanh.default, aten.relu.default,
    aten.leaky_relu.default, aten.sigmoid.default, aten.tanh.default, aten.silu.default, aten.gelu.default,
    aten.elu.default, aten.hardsigmoid.default, aten.hardswish.default, aten.softplus.default,
    aten.floor.default, aten.ceil.default, aten.round.default,
    aten.sum.default, aten.mean.default, aten.max.default, aten.min.default, aten.tril.default, aten.triu.default,
    aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default,
    aten.contiguous.default, aten.resolve_conj.default, aten._to_copy.default,
    aten.zeros_like.default, aten.ones_like.default,
)(lambda r: given(r.x()))  # fmt: skip
case(
    aten.reciprocal.default, aten.sqrt.default, aten.rsqrt.default, aten.log.default, aten.log2.default,
    aten.log10.default, aten.log1p.default,
)(lambda r: given(r.positive()))  # fmt: skip
case(aten.tan.default, aten.asin.default, aten.acos.default, aten.atanh.default)(lambda r: given(r.x() / 4))
case(
    aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default,
    aten.minimum.default, aten.clamp_min.Tensor, aten.clamp_max.Tensor, aten.copy.default,
)(lambda r: given(r.x(), r.row()))  # fmt: skip
case(aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor)(lambda r: given(r.x(), r.x(), alpha=-0.5))
case(
    aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar, aten.mul.Scalar, aten.div.Scalar, aten.clamp.default,
    aten.clamp_min.default, aten.clamp_max.default, aten.fill.Scalar, aten.full_like.default,
)(lambda r: given(r.x(), 0.75))  # fmt: skip
case(aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar)(lambda r: given(r.x(), 0.75, 2))
case(aten.clamp.Tensor)(lambda r: given(r.x(), -r.row(), r.row()))
case(aten.addcmul.default, aten.addcdiv.default)(lambda r: given(r.x(), r.x(), r.row(), value=0.5))
case(aten.lerp.Scalar)(lambda r: given(r.x(), r.x(), 0.3))
case(aten.lerp.Tensor)(lambda r: given(r.x(), r.x(), r.row()))
case(aten.pow.Tensor_Scalar)(lambda r: given(r.x(), 3))
case(aten.pow.Tensor_Scalar)(lambda r: given(r.positive(), 0.3))
case(aten.pow.Scalar)(lambda r: given(1.5, r.x()))

# Activations' own gradients

case(
    aten.silu_backward.default, aten.gelu_backward.default, aten.hardswish_backward.default
)(lambda r: given(r.x(), r.x()))  # fmt: skip
# torch multiplies by a float32 1 / 6, 5e-9 off, whatever the dtype: a small gradient keeps that below the tolerance.
case(aten.hardsigmoid_backward.default)(lambda r: given(r.x() / 3, r.x()))
case(aten.gelu_backward.default)(lambda r: given(r.x(), r.x(), approximate="tanh"))
case(aten.sigmoid_backward.default)(lambda r: given(r.x(), r.x().sigmoid()))
case(aten.tanh_backward.default)(lambda r: given(r.x(), r.x().tanh()))
case(aten.threshold_backward.default)(lambda r: given(r.x(), r.x(), 0.5))
case(aten.leaky_relu_backward.default)(lambda r: given(r.x(), r.x(), 0.1, False))
case(aten.elu_backward.default)(lambda r: given(r.x(), 0.5, 1.5, 2.0, False, r.x()))
case(aten.hardtanh_backward.default)(lambda r: given(r.x(), r.x(), -1.0, 1.0))
case(aten.softplus_backward.default)(lambda r: given(r.x(), r.x(), 2.0, 20.0))
case(aten.native_dropout_backward.default)(lambda r: given(r.x(), r.mask(), 1.25))

# Constants

case(aten.full.default)(lambda r: given(r.shape, 0.75))
case(aten.scalar_tensor.default)(lambda r: given(0.75))
case(aten.zeros.default, aten.ones.default)(lambda r: given(r.shape))
case(aten.new_zeros.default, aten.new_ones.default)(lambda r: given(r.x(), r.sizes))
case(aten.new_full.default)(lambda r: given(r.x(), r.sizes, 0.75))

# Masks

COMPARISONS = [getattr(aten, name) for name in ("gt", "ge", "lt", "le", "eq", "ne")]
case(*(packet.Scalar for packet in COMPARISONS))(lambda r: given(r.x().round(), 1))
case(*(packet.Tensor for packet in COMPARISONS))(lambda r: given(r.x().round(), r.x().round()))
case(aten.logical_and.default, aten.logical_or.default, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor)(
    lambda r: given(r.mask(), r.mask())
)
case(aten.logical_not.default, aten.bitwise_not.default)(lambda r: given(r.mask()))
case(aten.where.self)(lambda r: given(r.mask(), r.x(), r.row()))
case(aten.where.ScalarOther)(lambda r: given(r.mask(), r.x(), 0.5))
case(aten.where.ScalarSelf)(lambda r: given(r.mask(), 0.5, r.x()))
case(aten.where.Scalar)(lambda r: given(r.mask(), 0.5, -1.5))
case(aten.masked_fill.Scalar)(lambda r: given(r.x(), r.mask(), 0.5))
case(aten.masked_fill.Tensor)(lambda r: given(r.x(), r.mask(), torch.tensor(0.5)))
case(aten.tril.default, aten.triu.default)(lambda r: given(r.x(), -1))

# Moving elements

case(aten.slice.Tensor)(lambda r: given(r.image(), 2, 1, -1, 2))
case(aten.slice_backward.default)(lambda r: given(r.image(), [*r.image().shape[:3], r.sizes[3] + 9], 3, 2, r.sizes[3] + 6, 1))
case(aten.slice_scatter.default)(lambda r: given(r.image(), r.image()[:, :, 1:4], 2, 1, 4, 1))
case(aten.select.int)(lambda r: given(r.x(), 1, -1))
case(aten.select_backward.default)(lambda r: given(r.x(), [*r.shape, 3], 3, 1))
case(aten.select_scatter.default)(lambda r: given(r.x(), r.x()[:, 0], 1, -1))
case(aten.split_with_sizes.default)(lambda r: given(r.image(), [1, r.sizes[2] + 3], 2))
case(aten.split.Tensor)(lambda r: given(r.image(), 2, 3))
case(aten.unbind.int)(lambda r: given(r.x(), 1))
case(aten.cat.default)(lambda r: given([r.x(), r.x(), r.x()[:, :1]], 1))
case(aten.stack.default)(lambda r: given([r.x(), r.x()], 1))
case(aten.constant_pad_nd.default)(lambda r: given(r.image(), (1, 2, -1, 0), 0.5))
case(aten.flip.default)(lambda r: given(r.x(), [0, -1]))
case(aten.roll.default)(lambda r: given(r.x(), [1, -2], [0, 2]))
case(aten.unfold.default)(lambda r: given(r.image(), 3, 3, 2))
case(aten.to.dtype)(lambda r: given(r.x(), torch.float64))
case(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.view_copy.default)(
    lambda r: given(r.x(), (r.shape[0] * r.shape[1], -1))
)
case(aten._reshape_alias.default)(lambda r: given(r.x(), (r.shape[0], r.shape[1] * r.shape[2]), (r.shape[1] * r.shape[2], 1)))
case(aten.unsqueeze.default)(lambda r: given(r.x(), -1))
case(aten.squeeze.default)(lambda r: given(r.x()[:, :1]))
case(aten.squeeze.dim)(lambda r: given(r.x()[:, :1], 1))
case(aten.squeeze.dims)(lambda r: given(r.x()[:1, :1], [0, 1]))
case(aten.permute.default)(lambda r: given(r.x(), (2, 0, 1)))
case(aten.transpose.int)(lambda r: given(r.x(), -1, 0))
case(aten.t.default)(lambda r: given(r.x()[0]))
case(aten.expand.default)(lambda r: given(r.row(), (*r.shape[:2], -1)))
case(aten.repeat.default)(lambda r: given(r.x(), (2, 1, 1, 3)))

# Products

case(aten.mm.default)(lambda r: given(r.x()[0], r.x(r.shape[2], 5)))
case(aten.bmm.default)(lambda r: given(r.x(), r.x(r.shape[0], r.shape[2], 5)))
case(aten.mv.default)(lambda r: given(r.x()[0], r.row()))
case(aten.dot.default)(lambda r: given(r.x()[0, 0], r.row()))
case(aten.addmm.default)(lambda r: given(r.x(5), r.x()[0], r.x(r.shape[2], 5), beta=0.5, alpha=2))
case(aten.addmv.default)(lambda r: given(r.x(r.shape[1]), r.x()[0], r.row(), beta=0.5, alpha=2))
case(aten.baddbmm.default)(lambda r: given(r.x(*r.shape[:2], 5), r.x(), r.x(r.shape[0], r.shape[2], 5), beta=0.5, alpha=2))

# Sums, extremes, softmaxes

case(
    aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.logsumexp.default
)(lambda r: given(r.x(), [0, 2], True))  # fmt: skip
case(aten.max.dim, aten.min.dim)(lambda r: given(r.x(), 1))
case(aten.cumsum.default)(lambda r: given(r.x(), 1))
case(aten.var.correction, aten.std.correction, aten.var_mean.correction)(lambda r: given(r.image(), [2, 3], correction=1))
case(aten.linalg_vector_norm.default)(lambda r: given(r.x(), 2, [1], True))
case(aten._softmax.default, aten._log_softmax.default)(lambda r: given(r.x(), 1, False))
case(aten._safe_softmax.default)(lambda r: given(r.x(), 1))
case(aten._softmax_backward_data.default)(lambda r: given(r.x(), r.x().softmax(1), 1, torch.float64))
case(aten._log_softmax_backward_data.default)(lambda r: given(r.x(), r.x().log_softmax(1), 1, torch.float64))

# Convolutions and pooling

OPTIONS = ((2, 1), (1, 0), (1, 2), False, (0, 0), 1)


@case(aten.convolution.default)
def _(r: Draw) -> Call:
    return given(r.image(), r.x(5, r.sizes[1], 3, 2), r.x(5), *OPTIONS)


@case(aten.convolution_backward.default)
def _(r: Draw) -> Call:
    x, weight = r.image(), r.x(5, r.sizes[1], 3, 2)
    return given(r.x(*aten.convolution(x, weight, None, *OPTIONS).shape), x, weight, [5], *OPTIONS, [True] * 3)


case(aten.max_pool2d_with_indices.default, aten.avg_pool2d.default)(lambda r: given(r.image(), [3, 2], [2, 1], [1, 1]))


@case(max_pool2d_backward)
def _(r: Draw) -> Call:
    grad = r.x(*aten.avg_pool2d(r.image(), [3, 2], [2, 1], [1, 1]).shape)
    return given(grad, r.image(), [3, 2], [2, 1], [1, 1], [1, 1], False)


@case(aten.avg_pool2d_backward.default)
def _(r: Draw) -> Call:
    grad = r.x(*aten.avg_pool2d(r.image(), [3, 2], [2, 1], [1, 1]).shape)
    return given(grad, r.image(), [3, 2], [2, 1], [1, 1], False, True, None)


case(aten._adaptive_avg_pool2d.default)(lambda r: given(r.image(), (2, 3)))
case(aten._adaptive_avg_pool2d_backward.default)(lambda r: given(r.x(*r.sizes[:2], 2, 3), r.image()))
case(aten.upsample_nearest2d.default)(lambda r: given(r.image(), (7, 3)))
case(aten.upsample_nearest2d_backward.default)(lambda r: given(r.x(*r.sizes[:2], 7, 3), (7, 3), r.image().shape))
case(aten.upsample_bilinear2d.default)(lambda r: given(r.image(), (7, 3), False))
case(aten.upsample_bilinear2d_backward.default)(lambda r: given(r.x(*r.sizes[:2], 7, 3), (7, 3), r.image().shape, False))

# Norms: of 12 entries or more, with an epsilon of their own size, so that no variance is near zero.

EPS = 0.1


@case(aten.native_layer_norm.default)
def _(r: Draw) -> Call:
    return given(r.x(*r.shape, 12), [12], r.x(12), r.x(12), EPS)


@case(aten.native_layer_norm_backward.default)
def _(r: Draw) -> Call:
    x, weight, bias = r.x(*r.shape, 12), r.x(12), r.x(12)
    _, mean, rstd = aten.native_layer_norm(x, [12], weight, bias, EPS)
    return given(r.x(*x.shape), x, [12], mean, rstd, weight, bias, [True] * 3)


@case(aten._fused_rms_norm.default)
def _(r: Draw) -> Call:
    return given(r.x(*r.shape, 12), [12], r.x(12), EPS)


@case(aten._fused_rms_norm_backward.default)
def _(r: Draw) -> Call:
    x, weight = r.x(*r.shape, 12), r.x(12)
    return given(r.x(*x.shape), x, [12], aten._fused_rms_norm(x, [12], weight, EPS)[1], weight, [True] * 2)


case(batch_moments)(lambda r: given(r.image(), EPS))


@case(aten.native_batch_norm_backward.default)
def _(r: Draw) -> Call:
    x, c = r.image(), r.sizes[1]
    saved = x.mean([0, 2, 3]), (x.var([0, 2, 3], correction=0) + EPS).rsqrt()
    return given(r.x(*x.shape), x, r.x(c), r.x(c), r.positive(c), *saved, True, EPS, [True] * 3)


def _groups(r: Draw) -> tuple[torch.Tensor, tuple[int, int, int, int]]:
    n, _, h, w = r.sizes
    return r.x(n, 6, h + 4, w + 4), (n, 6, (h + 4) * (w + 4), 2)


@case(aten.native_group_norm.default)
def _(r: Draw) -> Call:
    x, sizes = _groups(r)
    return given(x, r.x(6), r.x(6), *sizes, EPS)


@case(aten.native_group_norm_backward.default)
def _(r: Draw) -> Call:
    x, sizes = _groups(r)
    weight = r.x(6)
    _, mean, rstd = aten.native_group_norm(x, weight, None, *sizes, EPS)
    return given(r.x(*x.shape), x, mean, rstd, weight, *sizes, [True] * 3)


def _slice(r: Draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, a slice of two tokens or more, and the code of a target in it: a row without one has scores far below all, which fp16 rounds."""
    rows, inner, size = r.sizes[0], r.sizes[1], r.sizes[2] + 1
    return r.x(rows, inner), r.x(size, inner), vocabulary_ops.vocabulary_code(torch.arange(7, 7 + rows) % size, 0, size)


case(torch.ops.torchane.vocabulary_scores.default)(lambda r: given(*_slice(r)))
case(torch.ops.torchane.vocabulary_kept_scores.default)(lambda r: given(*_slice(r)))


@case(torch.ops.torchane.vocabulary_gradient.default)
def _(r: Draw) -> Call:
    return given(r.x(r.sizes[0], 1), *_slice(r), r.positive(r.sizes[0], 1) + 30, r.positive(r.sizes[0], 1))


@case(torch.ops.torchane.vocabulary_gradient_of.default)
def _(r: Draw) -> Call:
    x, weight, code = _slice(r)
    return given(r.x(r.sizes[0], 1), x @ weight.T, code, r.positive(r.sizes[0], 1) + 30, r.positive(r.sizes[0], 1))
