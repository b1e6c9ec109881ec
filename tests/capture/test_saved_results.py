"""Every ATen op with several results whose gradient reads one of them: what the forward saves is what the backward expects.

The list is torch's own (torchgen's copy of derivatives.yaml), so an op that a new torch brings fails until it has a call
here. Values and gradients of the twin, beside the same op in float64.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from torchane.capture import backend
from torchane.capture.rules import RULES, decompositions

aten = torch.ops.aten

#: Four fp16 roundings of values, or of a saved result and the gradient that it meets.
TOLERANCE = 8 * 2**-11

#: Their attention has tests of its own, in tests/capture/rules/test_attention.py.
ATTENTION = "_scaled_dot_product_"

#: Need a GPU, a sparse tensor or a library that torch's CPU wheels lack: torch itself cannot call them here.
ELSEWHERE = frozenset({
    "_fused_dropout", "_sparse_mm_reduce_impl", "_cudnn_ctc_loss", "_cudnn_ctc_loss.Tensor", "cudnn_batch_norm", "_lstm_mps",
    "_cudnn_rnn", "miopen_batch_norm", "miopen_rnn", "miopen_ctc_loss", "miopen_ctc_loss.Tensor", "_flash_attention_forward",
    "_efficient_attention_forward", "_cudnn_attention_forward", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell",
    "mkldnn_rnn_layer",
})  # fmt: skip

#: Change their arguments in place, or have no derivative under AOTAutograd; torch.nn reaches them under another name, which is here.
BEHIND_ANOTHER_NAME = frozenset({
    "_fused_moving_avg_obs_fq_helper", "_native_batch_norm_legit", "_batch_norm_with_update", "_batch_norm_no_update",
    "convolution_backward",
})  # fmt: skip


@lru_cache
def saving_ops() -> dict[str, torch._ops.OpOverload]:
    """By the names of derivatives.yaml."""
    torchgen = pytest.importorskip("torchgen")
    path = Path(torchgen.__file__).parent / "packaged/autograd/derivatives.yaml"
    found = {}
    for entry in yaml.safe_load(path.read_text()):
        name = entry["name"].partition("(")[0]
        packet, _, overload = name.partition(".")
        op = getattr(getattr(aten, packet, None), overload or "default", None)
        if op is None or len(op._schema.returns) < 2:
            continue
        formulas = " ".join(str(text) for key, text in entry.items() if key not in ("name", "output_differentiability"))
        names = [f"result{i}" for i in range(len(op._schema.returns))] + [r.name for r in op._schema.returns if r.name]
        if any(re.search(rf"\b{re.escape(name)}\b", formulas) for name in names):
            found[name] = op
    return found


def square(n: int = 4, batch: int = 2) -> Tensor:
    return torch.randn(batch, n, n) * 0.3 + 2 * torch.eye(n)


def image(*shape: int) -> Tensor:
    """All numbers far enough apart that fp16 orders them as fp32 does."""
    count = torch.Size(shape).numel()
    return (torch.randperm(count).float() / 16).view(shape) - count / 32


SCORES = (6, 2, 5)
LENGTHS = [6, 5], [3, 2]
MOMENTS = (0.1, 1e-5)

#: name -> (function of the tensors that get gradients, those tensors); the function returns what is differentiable.
CASES: dict[str, tuple[Callable[..., object], Callable[[], list[Tensor]]]] = {
    "linalg_cholesky_ex": (lambda a: aten.linalg_cholesky_ex(a @ a.mT)[0], lambda: [square()]),
    "cummax": (lambda x: aten.cummax(x, 1)[0], lambda: [image(3, 8)]),
    "cummin": (lambda x: aten.cummin(x, 1)[0], lambda: [image(3, 8)]),
    "_ctc_loss": (lambda x: aten._ctc_loss(x.log_softmax(-1), torch.tensor([[1, 2, 3], [2, 4, 0]]), *LENGTHS)[0], lambda: [torch.randn(SCORES)]),
    "_ctc_loss.Tensor": (
        lambda x: aten._ctc_loss.Tensor(x.log_softmax(-1), torch.tensor([[1, 2, 3], [2, 4, 0]]), *map(torch.tensor, LENGTHS))[0],
        lambda: [torch.randn(SCORES)],
    ),
    "_linalg_det": (lambda a: aten._linalg_det(a)[0], lambda: [square()]),
    "_linalg_slogdet": (lambda a: aten._linalg_slogdet(a)[1], lambda: [square()]),
    "native_dropout": (lambda x: aten.native_dropout(x, 0.5, True)[0], lambda: [torch.randn(4, 16)]),
    "fake_quantize_per_tensor_affine_cachemask": (
        lambda x: aten.fake_quantize_per_tensor_affine_cachemask(x, 0.5, 0, -8, 7)[0], lambda: [image(4, 8) + 0.1],
    ),
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": (
        lambda x: aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams(
            x, torch.tensor(0.5), torch.tensor(0), torch.tensor(1), -8, 7
        )[0],
        lambda: [image(4, 8) + 0.1],
    ),
    "fake_quantize_per_channel_affine_cachemask": (
        lambda x: aten.fake_quantize_per_channel_affine_cachemask(x, torch.full((4,), 0.5), torch.zeros(4, dtype=torch.int), 0, -8, 7)[0],
        lambda: [image(4, 8) + 0.1],
    ),
    "frexp.Tensor": (lambda x: aten.frexp.Tensor(x)[0], lambda: [image(4, 8) + 0.01]),
    "linalg_inv_ex": (lambda a: aten.linalg_inv_ex(a)[0], lambda: [square()]),
    "kthvalue": (lambda x: aten.kthvalue(x, 2, 1)[0], lambda: [image(3, 8)]),
    "linalg_lstsq": (lambda a, b: aten.linalg_lstsq(a, b)[0], lambda: [torch.randn(2, 6, 3), torch.randn(2, 6, 2)]),
    "linalg_lu_factor_ex": (lambda a: aten.linalg_lu_factor_ex(a)[0], lambda: [square()]),
    "linalg_lu": (lambda a: aten.linalg_lu(a)[1:], lambda: [square()]),
    "max.dim": (lambda x: aten.max.dim(x, 1)[0], lambda: [image(3, 8)]),
    "median.dim": (lambda x: aten.median.dim(x, 1)[0], lambda: [image(3, 8)]),
    "nanmedian.dim": (lambda x: aten.nanmedian.dim(x, 1)[0], lambda: [image(3, 8)]),
    "min.dim": (lambda x: aten.min.dim(x, 1)[0], lambda: [image(3, 8)]),
    "aminmax": (lambda x: tuple(aten.aminmax(x, dim=1)), lambda: [image(3, 8)]),
    "mode": (lambda x: aten.mode(x.round(), 1)[0] + x.sum(1), lambda: [image(3, 8)]),
    "native_batch_norm": (
        lambda x, w, b: aten.native_batch_norm(x, w, b, None, None, True, *MOMENTS)[0],
        lambda: [torch.randn(8, 4, 6), torch.rand(4) + 0.5, torch.randn(4)],
    ),
    "_native_batch_norm_legit_no_training": (
        lambda x, w, b: aten._native_batch_norm_legit_no_training(x, w, b, torch.ones(4).to(x), torch.full((4,), 2.0).to(x), *MOMENTS)[0],
        lambda: [torch.randn(8, 4, 6), torch.rand(4) + 0.5, torch.randn(4)],
    ),
    "_native_batch_norm_legit.no_stats": (
        lambda x, w, b: aten._native_batch_norm_legit.no_stats(x, w, b, True, *MOMENTS)[0],
        lambda: [torch.randn(8, 4, 6), torch.rand(4) + 0.5, torch.randn(4)],
    ),
    "native_layer_norm": (
        lambda x, w, b: aten.native_layer_norm(x, [16], w, b, 1e-5)[0], lambda: [torch.randn(4, 16), torch.rand(16) + 0.5, torch.randn(16)],
    ),
    "_fused_rms_norm": (lambda x, w: aten._fused_rms_norm(x, [16], w, 1e-5)[0], lambda: [torch.randn(4, 16), torch.rand(16) + 0.5]),
    "native_group_norm": (
        lambda x, w, b: aten.native_group_norm(x, w, b, 2, 8, 6, 2, 1e-5)[0],
        lambda: [torch.randn(2, 8, 6), torch.rand(8) + 0.5, torch.randn(8)],
    ),
    "linalg_qr": (lambda a: aten.linalg_qr(a), lambda: [square()]),
    "_linalg_solve_ex": (lambda a, b: aten._linalg_solve_ex(a, b)[0], lambda: [square(), torch.randn(2, 4, 3)]),
    "sort": (lambda x: aten.sort(x, 1)[0], lambda: [image(3, 8)]),
    "sort.stable": (lambda x: aten.sort.stable(x, stable=True, dim=1)[0], lambda: [image(3, 8)]),
    "std_mean.correction": (lambda x: aten.std_mean.correction(x, [1], correction=1), lambda: [torch.randn(4, 16)]),
    "_linalg_svd": (lambda a: aten._linalg_svd(a)[1], lambda: [square()]),
    "_linalg_eigh": (lambda a: aten._linalg_eigh(a + a.mT)[0], lambda: [square()]),
    "linalg_eig": (lambda a: aten.linalg_eig(a @ a.mT)[0].real.sum(-1), lambda: [square()]),
    "topk": (lambda x: aten.topk(x, 3, 1)[0], lambda: [image(3, 8)]),
    "triangular_solve": (lambda b, a: aten.triangular_solve(b, a)[0], lambda: [torch.randn(2, 4, 3), square()]),
    "_weight_norm_interface": (lambda v, g: aten._weight_norm_interface(v, g, 0)[0], lambda: [torch.randn(8, 16), torch.rand(8, 1) + 0.5]),
    "_embedding_bag": (
        lambda w: aten._embedding_bag(w, torch.tensor([1, 3, 3, 0, 2]), torch.tensor([0, 2]), False, 1)[0], lambda: [torch.randn(6, 16)],
    ),
    "multilabel_margin_loss_forward": (
        lambda x: aten.multilabel_margin_loss_forward(x, torch.tensor([[1, 0, -1, 0], [2, -1, 0, 0]]), 1)[0], lambda: [image(2, 4)],
    ),
    "nll_loss_forward": (
        lambda x: aten.nll_loss_forward(x.log_softmax(-1), torch.tensor([1, 0, -100]), None, 1, -100)[0], lambda: [torch.randn(3, 8)],
    ),
    "nll_loss2d_forward": (
        lambda x: aten.nll_loss2d_forward(x.log_softmax(1), torch.zeros(2, 3, 3, dtype=torch.long), None, 1, -100)[0],
        lambda: [torch.randn(2, 4, 3, 3)],
    ),
    "log_sigmoid_forward": (lambda x: aten.log_sigmoid_forward(x)[0], lambda: [torch.randn(4, 16) * 4]),
    "adaptive_max_pool2d": (lambda x: aten.adaptive_max_pool2d(x, [2, 2])[0], lambda: [image(1, 2, 4, 4)]),
    "adaptive_max_pool3d": (lambda x: aten.adaptive_max_pool3d(x, [2, 2, 2])[0], lambda: [image(1, 2, 4, 4, 4)]),
    "fractional_max_pool2d": (
        lambda x: aten.fractional_max_pool2d(x, [2, 2], [3, 3], torch.full((1, 2, 2), 0.4).to(x))[0], lambda: [image(1, 2, 6, 6)],
    ),
    "fractional_max_pool3d": (
        lambda x: aten.fractional_max_pool3d(x, [2, 2, 2], [2, 2, 2], torch.full((1, 2, 3), 0.4).to(x))[0], lambda: [image(1, 2, 4, 4, 4)],
    ),
    "max_pool2d_with_indices": (lambda x: aten.max_pool2d_with_indices(x, [2, 2])[0], lambda: [image(1, 2, 4, 4)]),
    "max_pool3d_with_indices": (lambda x: aten.max_pool3d_with_indices(x, [2, 2, 2])[0], lambda: [image(1, 2, 4, 4, 4)]),
    "_pack_padded_sequence": (lambda x: aten._pack_padded_sequence(x, torch.tensor([3, 2]), True)[0], lambda: [torch.randn(2, 3, 16)]),
}


def is_ours(name: str) -> bool:
    """It has a rule, or is taken apart; the others are torch's own kernels on the host."""
    packet, _, overload = name.partition(".")
    op = getattr(getattr(aten, packet), overload or "default")
    return op in RULES or op in decompositions()


def test_every_op_that_saves_a_result_is_called_here() -> None:
    named = {*CASES, *ELSEWHERE, *BEHIND_ANOTHER_NAME}
    assert {name for name in saving_ops() if not name.startswith(ATTENTION)} == named


@pytest.mark.filterwarnings(
    "ignore::torchane.errors.TorchaneWarning", "ignore:.*triangular_solve:UserWarning", "ignore:The .grad attribute:UserWarning"
)
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if is_ours(name) else pytest.mark.long) for name in CASES])
def test_what_the_forward_saves_is_what_the_backward_expects(name: str) -> None:
    torch._dynamo.reset()
    function, make = CASES[name]
    torch.manual_seed(0)
    given = make()
    compiled = torch.compile(function, backend=backend.ane, options={"device": "twin"})
    ours, wanted = gradients_of(compiled, given, torch.float32), gradients_of(function, given, torch.float64)
    for mine, right in zip(ours, wanted, strict=True):
        assert ((mine - right).norm() / right.norm().clamp_min(1e-6)).item() < TOLERANCE


def gradients_of(function: Callable[..., object], given: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Results and gradients in float64, for the same incoming gradients and the same random numbers."""
    leaves = [x.to(dtype).requires_grad_() for x in given]
    torch.manual_seed(1)
    found = function(*leaves)
    results = [found] if isinstance(found, Tensor) else list(found)
    generator = torch.Generator().manual_seed(2)
    grads = [torch.randn(result.shape, generator=generator, dtype=torch.float64).to(dtype) for result in results]
    return [x.detach().double() for x in (*results, *torch.autograd.grad(results, leaves, grads))]
