"""Activations and their gradients against torch in float64, large inputs included."""

import pytest
import torch
from harness import check, run_rule

aten = torch.ops.aten
X = torch.cat([torch.linspace(-6, 6, 49), torch.tensor([0.0, -40.0, 40.0, -3.0, 3.0])])
G = torch.cos(torch.arange(X.numel()) * 1.0)


@pytest.mark.parametrize(
    "target",
    [
        aten.relu.default, aten.sigmoid.default, aten.tanh.default, aten.silu.default, aten.gelu.default,
        aten.hardswish.default, aten.hardsigmoid.default, aten.elu.default, aten.leaky_relu.default, aten.softplus.default,
    ],
    ids=str,
)  # fmt: skip
def test_activation(target):
    check(target, X)


def test_activation_with_options():
    check(aten.gelu.default, X, approximate="tanh")
    check(aten.elu.default, X, 0.5, 1.5, 2.0)
    check(aten.leaky_relu.default, X, 1.5)
    check(aten.softplus.default, X, 2.0, 30)


@pytest.mark.parametrize(
    "target",
    [aten.silu_backward.default, aten.gelu_backward.default, aten.hardswish_backward.default],
    ids=str,
)  # fmt: skip
def test_gradient_from_the_input(target):
    check(target, G, X)


def test_hardsigmoid_gradient():
    check(aten.hardsigmoid_backward.default, G, X)


def test_gradient_from_the_output():
    check(aten.sigmoid_backward.default, G, X.sigmoid())
    check(aten.tanh_backward.default, G, X.tanh())


def test_gradient_with_options():
    check(aten.gelu_backward.default, G, X, approximate="tanh")
    check(aten.threshold_backward.default, G, X, 0)
    check(aten.threshold_backward.default, G, X, 0.5)
    check(aten.leaky_relu_backward.default, G, X, 0.1, False)
    check(aten.elu_backward.default, G, 0.5, 1.5, 2.0, False, X)
    check(aten.elu_backward.default, G, 0.5, 1.5, 1.0, True, torch.ops.aten.elu(X, 0.5, 1.5))
    check(aten.hardtanh_backward.default, G, X, -1.0, 1.0)
    check(aten.softplus_backward.default, G, X, 2.0, 20.0)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_gradient_of_the_largest_fp16_numbers_is_finite(approximate):
    x = torch.tensor([65504.0, -65504.0, 300.0, -300.0])
    (slope,) = run_rule(aten.gelu_backward.default, (torch.ones(4), x), {"approximate": approximate}, fp16=True)
    assert slope.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_step_is_exact_for_the_smallest_fp16_number():
    tiny = torch.tensor([2.0**-24, -(2.0**-24), 0.0])
    (slope,) = run_rule(aten.threshold_backward.default, (torch.ones(3), tiny, 0), fp16=True)
    assert slope.tolist() == [1.0, 0.0, 0.0]
