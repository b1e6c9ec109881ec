"""Pooling and resizing, with their gradients, against torch in float64."""

import pytest
import torch
from harness import IDEAL, check, check_function, compare

from torchane.capture.rules.decompose import max_pool2d_backward

aten = torch.ops.aten
torch.manual_seed(0)
X = torch.randn(2, 3, 9, 8)

WINDOWS = [
    ([2, 2], [2, 2], [0, 0]),
    ([3, 3], [2, 2], [1, 1]),
    ([3, 2], [1, 2], [1, 0]),
    ([2], [], [0]),
]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_max_pool_and_gradient(window, ceil_mode):
    check(aten.max_pool2d_with_indices.default, X, *window, 1, ceil_mode)
    kernel, stride, padding = window
    y = aten.max_pool2d_with_indices(X, kernel, stride, padding, 1, ceil_mode)[0]
    grad = torch.cos(torch.arange(y.numel()) * 1.0).reshape(y.shape)
    check(max_pool2d_backward, grad, X, kernel, stride or kernel, padding, [1, 1], ceil_mode)


def test_the_gradient_of_a_padded_max_pool_of_numbers_above_16():
    """A window's largest less what padding holds is beyond fp16."""
    x = 64 + torch.arange(2 * 3 * 9 * 8).reshape(2, 3, 9, 8) % 37 / 16.0
    y = aten.max_pool2d_with_indices(x, [3, 3], [2, 2], [1, 1])[0]
    check(max_pool2d_backward, y, x, [3, 3], [2, 2], [1, 1], [1, 1], False)


def test_dilated_max_pool():
    check(aten.max_pool2d_with_indices.default, X, [2, 2], [1, 1], [0, 0], [2, 3])
    y = aten.max_pool2d_with_indices(X, [2, 2], [1, 1], [0, 0], [2, 3])[0]
    check(max_pool2d_backward, y, X, [2, 2], [1, 1], [0, 0], [2, 3], False)


def test_equal_entries_send_the_gradient_to_the_first():
    x = torch.ones(1, 1, 4, 4).double()
    grad = torch.arange(4.0).double().reshape(1, 1, 2, 2) + 1
    args = (grad, x, [2, 2], [2, 2], [0, 0], [1, 1], False)
    compare(max_pool2d_backward, args, {}, max_pool2d_backward(*args), IDEAL)


def test_training_through_max_pool_keeps_no_indices():
    checker = check_function(lambda x: torch.nn.functional.max_pool2d(x, 2), X)
    assert "torchane.max_pool2d_backward.default" in checker.checked
    assert not checker.declined


@pytest.mark.parametrize(
    "options",
    [(False, True, None), (True, False, None), (True, True, None), (False, True, 3), (True, True, -2)],
    ids=str,
)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_avg_pool_and_gradient(window, options):
    check(aten.avg_pool2d.default, X, *window, *options)
    kernel, stride, padding = window
    y = aten.avg_pool2d(X, kernel, stride, padding, *options)
    check(aten.avg_pool2d_backward.default, y.cos(), X, kernel, stride or kernel, padding, *options)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 8)])
def test_adaptive_avg_pool_and_gradient(size):
    check(aten._adaptive_avg_pool2d.default, X, size)
    check(aten._adaptive_avg_pool2d_backward.default, torch.randn(2, 3, *size), X)


@pytest.mark.parametrize("size", [(18, 16), (5, 4), (9, 20)])
def test_resizing_and_gradient(size):
    check(aten.upsample_nearest2d.default, X, size)
    check(aten.upsample_nearest2d_backward.default, torch.randn(2, 3, *size), size, X.shape)
    for corners in (False, True):
        check(aten.upsample_bilinear2d.default, X, size, corners)
        check(aten.upsample_bilinear2d_backward.default, torch.randn(2, 3, *size), size, X.shape, corners)


def test_unbatched_images():
    check(aten.max_pool2d_with_indices.default, X[0], [2, 2])
    check(aten.avg_pool2d.default, X[0], [2, 2])
