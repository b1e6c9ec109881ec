"""Rules that move elements: equal to torch to the last bit."""

import pytest
import torch
from harness import check
from hypothesis import given, settings
from hypothesis import strategies as st

from torchane.capture.rules.shape import same, view
from torchane.capture.rules.slices import part, slice_
from torchane.mil.build import Builder

aten = torch.ops.aten
X = torch.arange(120.0).reshape(2, 3, 4, 5)
EXACTLY = 0.0


@pytest.mark.parametrize("shape", [(6, 20), (-1,), (2, -1, 5), (1, 2, 3, 4, 5)])
def test_view(shape):
    check(aten.view.default, X, shape, tolerance=EXACTLY)


@pytest.mark.parametrize("dims", [(0, 1, 2, 3), (3, 1, 0, 2), (-1, 0, 1, 2)])
def test_permute(dims):
    check(aten.permute.default, X, dims, tolerance=EXACTLY)


def test_transposes_and_axes_of_one():
    check(aten.transpose.int, X, -1, 1, tolerance=EXACTLY)
    check(aten.t.default, X[0, 0], tolerance=EXACTLY)
    check(aten.t.default, X[0, 0, 0], tolerance=EXACTLY)
    check(aten.unsqueeze.default, X, -1, tolerance=EXACTLY)
    check(aten.unsqueeze.default, torch.tensor(2.0), 0, tolerance=EXACTLY)
    check(aten.squeeze.default, X[:1, :, :1], tolerance=EXACTLY)
    check(aten.squeeze.dim, X[:1, :, :1], 2, tolerance=EXACTLY)
    check(aten.squeeze.dim, X, 2, tolerance=EXACTLY)
    check(aten.squeeze.dims, X[:1, :, :1], [0, 2], tolerance=EXACTLY)


@pytest.mark.parametrize(
    "case", [((1, 4), (3, 4)), ((4,), (2, 3, 4)), ((2, 1, 1), (2, 5, 3)), ((), (2, 2)), ((2, 3), (-1, -1))]
)
def test_expand(case):
    given_, shape = case
    check(aten.expand.default, torch.randn(given_), shape, tolerance=EXACTLY)


@pytest.mark.parametrize("repeats", [(1, 1, 1), (2, 1, 3), (2, 1, 2, 2)])
def test_repeat(repeats):
    check(aten.repeat.default, X[0], repeats, tolerance=EXACTLY)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_slice_and_its_gradient(data):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    start = data.draw(st.integers(-6, 6) | st.none())
    end = data.draw(st.integers(-6, 6) | st.just(2**63 - 1))
    step = data.draw(st.integers(1, 4))
    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    taken = aten.slice.Tensor(x, dim, start, end, step)
    if taken.numel() == 0:
        return
    check(aten.slice.Tensor, x, dim, start, end, step, tolerance=EXACTLY)
    check(aten.slice_backward.default, taken, shape, dim, 0 if start is None else start, end, step, tolerance=EXACTLY)
    check(aten.slice_scatter.default, x, taken + 0.5, dim, start, end, step, tolerance=EXACTLY)


@pytest.mark.parametrize("index", [0, 2, -1])
def test_select_and_its_gradient(index):
    check(aten.select.int, X, 2, index, tolerance=EXACTLY)
    check(aten.select_backward.default, X[:, :, 0], X.shape, 2, index, tolerance=EXACTLY)
    check(aten.select_scatter.default, X, X[:, :, 0] + 1, 2, index, tolerance=EXACTLY)


def test_copy_into_a_shape():
    check(aten.copy.default, X, X[0] + 1, tolerance=EXACTLY)


def test_splitting():
    check(aten.split.Tensor, X, 2, 1, tolerance=EXACTLY)
    check(aten.split_with_sizes.default, X, [1, 4], -1, tolerance=EXACTLY)
    check(aten.unbind.int, X, 1, tolerance=EXACTLY)


def test_joining():
    check(aten.cat.default, [X, X + 1, X[:, :1]], 1, tolerance=EXACTLY)
    check(aten.cat.default, [X, torch.empty(0)], 0, tolerance=EXACTLY)
    check(aten.stack.default, [X[0], X[1]], -1, tolerance=EXACTLY)


@pytest.mark.parametrize("pad", [(1, 2), (0, 1, 2, 0), (-1, 1), (-1, -2, 3, 0), (0, 0)])
def test_constant_pad(pad):
    check(aten.constant_pad_nd.default, X, pad, 0.5, tolerance=EXACTLY)


def test_turning_round():
    check(aten.flip.default, X, [0, -1], tolerance=EXACTLY)
    check(aten.roll.default, X, [1, -2], [0, 2], tolerance=EXACTLY)
    check(aten.roll.default, X, [7], tolerance=EXACTLY)
    check(aten.unfold.default, X, 3, 2, 2, tolerance=EXACTLY)
    check(aten.unfold.default, torch.tensor(2.0), 0, 1, 1, tolerance=EXACTLY)
    check(aten.unfold.default, X, 1, 2, 1, tolerance=EXACTLY)


def test_what_changes_nothing_writes_nothing():
    b = Builder()
    x = b.input("x", (2, 3))
    assert same(b, x) is x and view(b, x, (2, -1)) is x and slice_(b, x, 1, 0, 2**63 - 1) is x
    assert part(b, x, 0, 0, 2) is x
    assert b.ops == []
