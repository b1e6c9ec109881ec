"""Pooling, against PyTorch in float64 and coremltools' types."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from second_opinion import ours, theirs

from torchane.errors import CompileError
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, TensorType

functional = torch.nn.functional
MAXIMUM = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
ROOT = {1: lambda x, p, k, s: functional.lp_pool1d(x, p, *k, *s), 2: functional.lp_pool2d}
CASES = [("max_pool", "torch"), ("avg_pool", "torch"), ("l2_pool", "torch")]


@st.composite
def pools(draw):
    """x, kernel, strides, and one pad for both sides of each axis, which PyTorch bounds by half the kernel."""
    rank = draw(st.integers(1, 3))
    vector = lambda low, high: tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))
    sizes, kernel, strides = vector(1, 7), vector(1, 3), vector(1, 3)
    pad = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    x = np.random.default_rng(sum(sizes)).normal(size=(2, 2, *sizes)).astype(np.float32)
    return x, kernel, strides, pad, rank < 3 and draw(st.booleans())


@settings(max_examples=80, deadline=None)
@given(pools(), st.booleans())
def test_pooling_agrees_with_torch(pool, exclude):
    x, kernel, strides, pad, ceil_mode = pool
    assume(all(n + 2 * p >= k for n, p, k in zip(x.shape[2:], pad, kernel)))
    assume(x.ndim < 5 or all(n >= k for n, k in zip(x.shape[2:], kernel)))  # PyTorch forgets the padding in 3-D
    # Without padding coremltools counts a window that starts beyond the data, and PyTorch does not.
    assume(
        not ceil_mode
        or all(p > 0 or (n - k) % s == 0 or k >= s for n, p, k, s in zip(x.shape[2:], pad, kernel, strides))
    )
    args = {"kernel_sizes": kernel, "strides": strides, "pad_type": "custom", "ceil_mode": ceil_mode}
    args["pad"] = tuple(p for p in pad for _ in range(2))
    wide, rank = torch.tensor(x, dtype=torch.float64), x.ndim - 2
    types, (value,) = ours("max_pool", x=x, **args)
    wanted = MAXIMUM[rank](wide, kernel, strides, pad, ceil_mode=ceil_mode).numpy()
    assert types[0].shape == wanted.shape
    np.testing.assert_array_equal(value, wanted.astype(np.float32))
    _, (value,) = ours("avg_pool", x=x, exclude_padding_from_average=exclude, **args)
    wanted = AVERAGE[rank](wide, kernel, strides, pad, ceil_mode, not exclude).numpy()
    np.testing.assert_allclose(value, wanted, 1e-6, 1e-6)
    if rank < 3 and not ceil_mode:
        _, (value,) = ours("l2_pool", x=x, **args)
        padded = functional.pad(wide, [p for p in reversed(pad) for _ in range(2)])
        wanted = ROOT[rank](padded, 2, kernel, strides).numpy()
        np.testing.assert_allclose(value, wanted, 1e-6, 1e-6)


@settings(max_examples=40, deadline=None)
@given(pools(), st.sampled_from(["valid", "same", "same_lower"]))
def test_types_of_named_paddings_agree_with_coremltools(pool, pad_type):
    x, kernel, strides, _, _ = pool
    assume(pad_type != "valid" or all(n >= k for n, k in zip(x.shape[2:], kernel)))
    args = {"x": x, "kernel_sizes": kernel, "strides": strides, "pad_type": pad_type}
    for op in ("max_pool", "avg_pool") + (("l2_pool",) if x.ndim < 5 else ()):
        types, (value,) = ours(op, **args)
        assert types == theirs(op, **args)[0]
        assert types[0].shape == value.shape


def test_same_padding_counts_for_the_average_unless_excluded():
    x, args = np.ones((1, 1, 3), np.float32), {"kernel_sizes": (3,), "pad_type": "same"}
    np.testing.assert_allclose(ours("avg_pool", x=x, **args)[1][0].ravel(), [2 / 3, 1, 2 / 3], 1e-6)
    assert ours("avg_pool", x=x, exclude_padding_from_average=True, **args)[1][0].ravel().tolist() == [1, 1, 1]


def test_padding_never_wins_a_maximum():
    _, (value,) = ours("max_pool", x=-np.ones((1, 1, 2), np.float16), kernel_sizes=(3,), pad_type="same")
    assert value.ravel().tolist() == [-1, -1]


def test_unknown_sizes_flow_through():
    x = TensorType(FP16, (None, 3, None, 8))
    args = {"x": x, "kernel_sizes": (2, 2), "strides": (2, 2), "pad_type": "valid"}
    assert KINDS["max_pool"].infer(args) == (TensorType(FP16, (None, 3, None, 4)),)


X = TensorType(FP16, (1, 3, 8, 8))


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("max_pool", {"x": X, "kernel_sizes": (2,), "pad_type": "valid"}, "max_pool: kernel_sizes .* asks for 2"),
        ("max_pool", {"x": X, "kernel_sizes": (9, 9), "pad_type": "valid"}, "max_pool: spatial axis 0 has 8 entries"),
        ("avg_pool", {"x": X, "kernel_sizes": (2, 2), "pad_type": "no"}, "avg_pool: pad_type is 'no'"),
        (
            "avg_pool",
            {"x": X, "kernel_sizes": (2, 2), "pad_type": "same", "ceil_mode": True},
            "avg_pool: ceil_mode takes",
        ),
        (
            "l2_pool",
            {"x": TensorType(FP16, (1, 3, 8, 8, 8)), "kernel_sizes": (2, 2, 2), "pad_type": "valid"},
            "l2_pool: x is .*rank 3 or 4",
        ),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
