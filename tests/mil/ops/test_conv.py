"""Convolution and its transpose, against PyTorch in float64 and coremltools' types."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from second_opinion import ours, theirs

from torchane.errors import CompileError
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, FP32, INT32, TensorType

FORWARD = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
BACKWARD = {
    1: torch.nn.functional.conv_transpose1d,
    2: torch.nn.functional.conv_transpose2d,
    3: torch.nn.functional.conv_transpose3d,
}
CASES = [("conv", "torch"), ("conv_transpose", "torch")]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def wide(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float64)


@st.composite
def layers(draw):
    """x, weight, strides, dilations, groups, and pads of before and after for 1 to 3 spatial axes."""
    rank, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2]))
    vector = lambda low, high: tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))
    sizes, kernel, strides, dilations = vector(1, 6), vector(1, 3), vector(1, 3), vector(1, 2)
    pad = tuple(draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank)))
    channels, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    return normal(2, channels, *sizes), normal(out, channels // groups, *kernel), strides, dilations, groups, pad


@settings(max_examples=60, deadline=None)
@given(layers(), st.booleans())
def test_conv_with_custom_padding_agrees_with_torch(layer, with_bias):
    x, weight, strides, dilations, groups, pad = layer
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations)]
    assume(all(n + a + b >= s for n, a, b, s in zip(x.shape[2:], pad[::2], pad[1::2], spans)))
    bias = normal(len(weight)) if with_bias else None
    args = {"strides": strides, "dilations": dilations, "groups": groups}
    types, (value,) = ours("conv", x=x, weight=weight, bias=bias, pad_type="custom", pad=pad, **args)
    around = tuple(size for pair in reversed(list(zip(pad[::2], pad[1::2]))) for size in pair)
    padded = torch.nn.functional.pad(wide(x), around)
    wanted = FORWARD[x.ndim - 2](
        padded, wide(weight), None if bias is None else wide(bias), strides, 0, dilations, groups
    ).numpy()
    assert types[0].shape == wanted.shape
    np.testing.assert_allclose(value, wanted, 1e-6, 1e-6)


@settings(max_examples=40, deadline=None)
@given(layers(), st.sampled_from(["valid", "same", "same_lower"]))
def test_types_of_named_paddings_agree_with_coremltools(layer, pad_type):
    x, weight, strides, dilations, groups, _ = layer
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations)]
    assume(pad_type != "valid" or all(n >= s for n, s in zip(x.shape[2:], spans)))
    args = {"strides": strides, "dilations": dilations, "groups": groups, "pad_type": pad_type}
    types, (value,) = ours("conv", x=x, weight=weight, **args)
    assert types == theirs("conv", x=x, weight=weight, **args)[0]
    assert value.shape == types[0].shape


def test_same_puts_the_odd_entry_behind_and_same_lower_before():
    x, weight = np.arange(1, 5, dtype=np.float32).reshape(1, 1, 4), np.ones((1, 1, 2), np.float32)
    assert ours("conv", x=x, weight=weight, pad_type="same")[1][0].ravel().tolist() == [3, 5, 7, 4]
    assert ours("conv", x=x, weight=weight, pad_type="same_lower")[1][0].ravel().tolist() == [1, 3, 5, 7]


@settings(max_examples=60, deadline=None)
@given(layers(), st.booleans())
def test_conv_transpose_agrees_with_torch(layer, with_bias):
    x, weight, strides, dilations, groups, pad = layer
    weight = normal(x.shape[1], 2, *weight.shape[2:])
    bias = normal(2 * groups) if with_bias else None
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations)]
    whole = [(n - 1) * s + span for n, s, span in zip(x.shape[2:], strides, spans)]
    assume(all(n > a + b for n, a, b in zip(whole, pad[::2], pad[1::2])))
    args = {"strides": strides, "dilations": dilations, "groups": groups}
    types, (value,) = ours("conv_transpose", x=x, weight=weight, bias=bias, pad_type="custom", pad=pad, **args)
    full = BACKWARD[x.ndim - 2](
        wide(x), wide(weight), None if bias is None else wide(bias), strides, 0, 0, groups, dilations
    ).numpy()
    cut = tuple(slice(a, n - b) for n, a, b in zip(whole, pad[::2], pad[1::2]))
    assert types[0].shape == value.shape
    np.testing.assert_allclose(value, full[(slice(None), slice(None), *cut)], 1e-6, 1e-6)


@pytest.mark.parametrize(("stride", "size"), [(1, 5), (2, 5), (3, 4)])
def test_conv_transpose_with_same_padding_is_the_gradient_of_conv_with_it(stride, size):
    weight, given = normal(2, 3, 3, 3), normal(1, 2, size, size)
    _, (value,) = ours("conv_transpose", x=given, weight=weight, pad_type="same", strides=(stride, stride))
    x = np.zeros((1, 3, size * stride, size * stride), np.float32)
    wanted = np.zeros(x.size)
    for index in range(x.size):  # conv is linear: its gradient is its value on each unit vector
        x.flat[index] = 1
        _, (column,) = ours("conv", x=x, weight=weight, pad_type="same", strides=(stride, stride))
        wanted[index] = np.sum(column.astype(np.float64) * given)
        x.flat[index] = 0
    np.testing.assert_allclose(value.ravel(), wanted, 1e-4, 1e-5)


def test_conv_transpose_fills_up_to_output_shape_with_what_no_entry_reaches():
    x, weight = np.ones((1, 1, 2), np.float32), np.ones((1, 1, 1), np.float32)
    types, (value,) = ours("conv_transpose", x=x, weight=weight, strides=(2,), output_shape=(1, 1, 4))
    assert types == (TensorType(FP32, (1, 1, 4)),)
    assert value.ravel().tolist() == [1, 0, 1, 0]


def test_unknown_sizes_flow_through():
    x, weight = TensorType(FP16, (None, None, 8, None)), TensorType(FP16, (4, 3, 3, 3))
    assert KINDS["conv"].infer({"x": x, "weight": weight}) == (TensorType(FP16, (None, 4, 6, None)),)
    weight = TensorType(FP16, (3, 4, 3, 3))
    assert KINDS["conv_transpose"].infer({"x": x, "weight": weight}) == (TensorType(FP16, (None, 4, 10, None)),)


def test_multiply_adds():
    x, weight = TensorType(FP16, (1, 6, 8, 8)), TensorType(FP16, (4, 3, 3, 3))
    assert KINDS["conv"].macs({"x": x, "weight": weight, "groups": 2}) == 4 * 6 * 6 * 3 * 9
    weight = TensorType(FP16, (6, 4, 3, 3))
    assert KINDS["conv_transpose"].macs({"x": x, "weight": weight}) == 6 * 8 * 8 * 4 * 9


X, W = TensorType(FP16, (1, 4, 8)), TensorType(FP16, (6, 4, 3))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"x": TensorType(FP16, (1, 4)), "weight": W}, "conv: x is .*rank 2; it takes rank 3 to 5"),
        ({"x": X, "weight": TensorType(INT32, (6, 4, 3))}, "conv: weight is .*must hold floats"),
        ({"x": X, "weight": W, "groups": 2}, "conv: x .* has 4 channels and weight .* takes 4 in each of 2 groups"),
        ({"x": X, "weight": W, "bias": TensorType(FP16, (4,))}, r"conv: bias .* must have the shape \[6\]"),
        ({"x": X, "weight": W, "strides": (1, 1)}, "conv: strides .* has 2 entries and 1-D data asks for 1"),
        ({"x": X, "weight": W, "strides": (0,)}, "conv: strides .*1 or more"),
        ({"x": X, "weight": W, "pad_type": "some"}, "conv: pad_type is 'some'; it must be one of valid"),
        ({"x": X, "weight": W, "pad_type": "custom"}, "conv: pad .*custom padding of 1-D data asks for 2"),
        ({"x": X, "weight": W, "dilations": (4,)}, "conv: spatial axis 0 has 8 entries.*a window spans 9"),
        ({"x": X, "weight": TensorType(FP16, (6, 4, None))}, "conv: weight .*size of its kernel must be known"),
    ],
)
def test_conv_refuses(args, message):
    with pytest.raises(CompileError, match=message):
        KINDS["conv"].infer(args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"x": X, "weight": W}, "conv_transpose: x .* and weight .* do not meet"),
        ({"x": X, "weight": TensorType(FP16, (4, 2, 3)), "pad_type": "same_lower"}, "conv_transpose: pad_type"),
        (
            {"x": X, "weight": TensorType(FP16, (4, 2, 3)), "output_shape": (1, 3, 9)},
            r"conv_transpose: output_shape \(1, 3, 9\); x .* gives \(1, 2",
        ),
        (
            {"x": X, "weight": TensorType(FP16, (4, 2, 3)), "pad_type": "custom", "pad": (5, 5)},
            "conv_transpose: pad .* leaves nothing",
        ),
    ],
)
def test_conv_transpose_refuses(args, message):
    with pytest.raises(CompileError, match=message):
        KINDS["conv_transpose"].infer(args)
