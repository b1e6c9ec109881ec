"""Norms and their gradients against torch in float64, and where fp16 would overflow."""

import numpy as np
import pytest
import torch
from harness import IDEAL, check, check_model, compare, run_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._decomp import core_aten_decompositions

from torchane.capture import rules

aten = torch.ops.aten
torch.manual_seed(0)
X, G = torch.randn(3, 5, 16), torch.randn(3, 5, 16)
W, B = torch.randn(16), torch.randn(16)


@pytest.mark.parametrize("affine", [(W, B), (W, None), (None, None)], ids=["weight, bias", "weight", "plain"])
def test_layer_norm(affine):
    check(aten.native_layer_norm.default, X, [16], *affine, 1e-5)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
@settings(max_examples=25, deadline=None)
def test_layer_norm_and_gradient_over_several_axes(shape, data):
    count = data.draw(st.integers(1, len(shape)))
    x, grad = torch.randn(shape), torch.randn(shape)
    normalized = shape[-count:]
    w, bias = torch.randn(normalized), torch.randn(normalized)
    check(aten.native_layer_norm.default, x, normalized, w, bias, 1e-1)
    _, mean, rstd = aten.native_layer_norm(x.double(), normalized, w.double(), bias.double(), 1e-1)
    check(aten.native_layer_norm_backward.default, grad, x, normalized, mean, rstd, w, bias, [True] * 3, tolerance=0.05)


def test_layer_norm_gradient():
    _, mean, rstd = aten.native_layer_norm(X.double(), [16], W.double(), B.double(), 1e-5)
    check(aten.native_layer_norm_backward.default, G, X, [16], mean, rstd, W, B, [True, True, True])
    check(aten.native_layer_norm_backward.default, G, X, [16], mean, rstd, None, None, [True, False, False])


def test_rms_norm_and_gradient():
    check(aten._fused_rms_norm.default, X, [16], W, 1e-5)
    rstd = aten._fused_rms_norm(X.double(), [16], W.double(), 1e-5)[1]
    args = (G.double(), X.double(), [16], rstd, W.double(), [True, True])
    # torch has no CPU kernel of the gradient; its decomposition is the oracle.
    wanted = core_aten_decompositions()[aten._fused_rms_norm_backward.default](*args)
    compare(aten._fused_rms_norm_backward.default, args, {}, wanted, IDEAL)


def test_norm_gradients_stay_in_fp16_where_the_cube_of_rstd_does_not():
    x = (torch.randn(4, 64) * 2e-3).half().double()
    grad, w = torch.randn(4, 64).double(), torch.ones(64).double()
    wanted, rstd = aten.native_layer_norm_backward, aten.native_layer_norm(x, [64], w, None, 0.0)
    args = (grad, x, [64], rstd[1], rstd[2], w, None, [True, False, False])
    (dx, *_) = run_rule(aten.native_layer_norm_backward.default, args, fp16=True)
    expected = wanted(*args)[0].numpy()
    assert float(rstd[2].max()) ** 3 > 65504
    assert np.abs(dx - expected).max() <= 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 3, 2)], ids=str)
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_gradient(shape, train):
    x, grad, w = torch.randn(shape), torch.randn(shape), torch.randn(6)
    mean, var = torch.randn(6), torch.rand(6) + 0.5
    axes = [0, *range(2, len(shape))]
    wide = x.double()
    saved = wide.mean(axes), (wide.var(axes, correction=0) + 1e-5).rsqrt()
    args = (grad, x, w, mean, var, *(saved if train else (None, None)), train, 1e-5, [True, True, True])
    check(aten.native_batch_norm_backward.default, *args)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_as_it_is_taken_apart(train):
    x, w, bias = torch.randn(4, 6, 3, 2), torch.randn(6), torch.randn(6)
    stats = torch.randn(6), torch.rand(6) + 0.5
    ours = rules.decompositions()[aten._native_batch_norm_legit_functional.default]
    wanted = aten._native_batch_norm_legit_functional(x, w, bias, *stats, train, 0.1, 1e-5)
    for mine, torchs in zip(ours(x, w, bias, *stats, train, 0.1, 1e-5), wanted, strict=True):
        torch.testing.assert_close(mine, torchs)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3, 2)], ids=str)
def test_batch_norm_without_averages_as_it_is_taken_apart(shape):
    x, w, bias = torch.randn(shape), torch.randn(6), torch.randn(6)
    ours = rules.decompositions()[aten._native_batch_norm_legit.no_stats]
    wanted = aten._native_batch_norm_legit.no_stats(x, w, bias, True, 0.1, 1e-5)
    for mine, torchs in zip(ours(x, w, bias, True, 0.1, 1e-5), wanted, strict=True):
        torch.testing.assert_close(mine, torchs)


@pytest.mark.parametrize("layer", [torch.nn.InstanceNorm2d(6, affine=True), torch.nn.BatchNorm2d(6, track_running_stats=False)], ids=["instance", "batch"])
def test_norms_without_running_averages_are_programs(layer):
    checked, declined = check_model(torch.nn.Sequential(layer, Sum()), torch.randn(4, 6, 3, 2))
    assert not declined
    assert {"torchane.batch_moments.default", "aten.native_batch_norm_backward.default"} <= checked


def test_running_statistics_stay_on_the_host():
    layer = torch.nn.BatchNorm2d(6)
    checked, declined = check_model(torch.nn.Sequential(layer, Sum()), torch.randn(4, 6, 3, 2))
    assert set(declined) == {"aten._foreach_mul.List", "aten._foreach_mul.Scalar", "aten._foreach_lerp.Scalar", "aten.add.Tensor"}
    assert {"torchane.batch_moments.default", "aten.native_batch_norm_backward.default"} <= checked


class Sum(torch.nn.Module):
    def forward(self, x):
        return x.square().sum()


@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize("spatial", [(4,), (3, 2)], ids=str)
def test_group_norm_and_gradient(group, spatial):
    x, grad = torch.randn(3, 6, *spatial), torch.randn(3, 6, *spatial)
    w, bias, positions = torch.randn(6), torch.randn(6), torch.Size(spatial).numel()
    check(aten.native_group_norm.default, x, w, bias, 3, 6, positions, group, 1e-3)
    check(aten.native_group_norm.default, x, None, None, 3, 6, positions, group, 1e-3)
    _, mean, rstd = aten.native_group_norm(x.double(), w.double(), bias.double(), 3, 6, positions, group, 1e-3)
    args = (grad, x, mean, rstd, w, 3, 6, positions, group, [True, True, True])
    check(aten.native_group_norm_backward.default, *args, tolerance=0.05)


def test_negative_epsilon_stays_negative():
    check(aten.native_layer_norm.default, X * 3, [16], W, B, -0.5)
