"""Axes traded for others, against PyTorch and by their inverses. Apple's values: test_apple_suite.py."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from second_opinion import ours, theirs

from torchane.errors import CompileError
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, TensorType

CASES = [("pixel_shuffle", "torch"), ("pixel_unshuffle", "torch"), ("depth_to_space", "loop"), ("space_to_depth", "inverse"), ("space_to_batch", "loop"), ("batch_to_space", "inverse")]  # fmt: skip
small = st.integers(1, 3)


def image(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@given(small, small, small, small)
def test_pixel_shuffles_agree_with_torch(channels, height, width, factor):
    x = image(2, channels * factor * factor, height, width)
    _, (value,) = ours("pixel_shuffle", x=x, upscale_factor=factor)
    np.testing.assert_array_equal(value, torch.nn.functional.pixel_shuffle(torch.tensor(x), factor).numpy())
    _, (back,) = ours("pixel_unshuffle", x=value, downscale_factor=factor)
    np.testing.assert_array_equal(back, torch.nn.functional.pixel_unshuffle(torch.tensor(value), factor).numpy())


@given(small, small, small, small)
def test_depth_goes_to_places_with_the_channel_innermost(channels, height, width, block):
    x = image(1, channels * block * block, height, width)
    types, (value,) = ours("depth_to_space", x=x, block_size=block)
    assert types == theirs("depth_to_space", x=x, block_size=block)[0]
    for c, h, w, i, j in np.ndindex(channels, height, width, block, block):
        assert value[0, c, h * block + i, w * block + j] == x[0, (i * block + j) * channels + c, h, w]
    np.testing.assert_array_equal(ours("space_to_depth", x=value, block_size=block)[1][0], x)


@given(small, small, st.tuples(small, small), st.tuples(*[st.integers(0, 2)] * 4))
def test_places_go_to_the_batch_outermost(batch, channels, block, margins):
    (a, b), (top, bottom, left, right) = block, margins
    height, width = 6 * a - top - bottom, 6 * b - left - right
    x = image(batch, channels, height, width)
    pairs = ([top, bottom], [left, right])
    types, (value,) = ours("space_to_batch", x=x, block_shape=block, paddings=np.array(pairs, np.int32))
    padded = np.pad(x, [(0, 0), (0, 0), *pairs])
    for i, j, n in np.ndindex(a, b, batch):
        np.testing.assert_array_equal(value[(i * b + j) * batch + n], padded[n, :, i::a, j::b])
    _, (back,) = ours("batch_to_space", x=value, block_shape=block, crops=np.array(pairs, np.int32))
    assert types[0].shape == value.shape
    np.testing.assert_array_equal(back, x)


def test_unknown_sizes_flow_through():
    x = TensorType(FP16, (None, 8, None, 4))
    assert KINDS["pixel_shuffle"].infer({"x": x, "upscale_factor": 2})[0].shape == (None, 2, None, 8)
    assert KINDS["space_to_depth"].infer({"x": x, "block_size": 2})[0].shape == (None, 32, None, 2)


X = TensorType(FP16, (2, 6, 4, 5))


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("pixel_shuffle", {"x": X, "upscale_factor": 2}, "pixel_shuffle: axis 1 of x .* is not a multiple of 4"),
        ("pixel_unshuffle", {"x": X, "downscale_factor": 2}, "pixel_unshuffle: axis 3 of x .* is not a multiple of 2"),
        ("depth_to_space", {"x": X, "block_size": 0}, "depth_to_space: block_size is 0"),
        ("space_to_depth", {"x": TensorType(FP16, (2, 6)), "block_size": 2}, "space_to_depth: .*it takes rank 4"),
        (
            "space_to_batch",
            {"x": X, "block_shape": (2,), "paddings": ([0, 0], [0, 0])},
            "space_to_batch: block_shape .* has 1 entries",
        ),
        (
            "batch_to_space",
            {"x": X, "block_shape": (2, 1), "crops": ([4, 4], [0, 0])},
            "batch_to_space: crops .* leave nothing",
        ),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
