"""Resizing, against PyTorch in float64 and the grids of coremltools' documentation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from second_opinion import ours, theirs

from torchane.errors import CompileError
from torchane.mil.kinds import KINDS
from torchane.mil.ops.resize import grid
from torchane.mil.types import FP16, INT32, TensorType

CASES = [(op, "torch") for op in ("upsample_nearest_neighbor", "upsample_bilinear", "resize_nearest_neighbor", "resize_bilinear", "resize")]  # fmt: skip
sizes = st.integers(1, 6)


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).normal(size=(2, 3, height, width)).astype(np.float32)


def by_torch(x: np.ndarray, height: int, width: int, **how: object) -> np.ndarray:
    return torch.nn.functional.interpolate(torch.tensor(x, dtype=torch.float64), (height, width), **how).numpy()


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, sizes, sizes)
def test_resizing_agrees_with_torch(height, width, new_height, new_width):
    x = image(height, width)
    target = {"target_size_height": new_height, "target_size_width": new_width}
    args = {"shape": (new_height, new_width), "resized_dims": 2}
    aligned = by_torch(x, new_height, new_width, mode="bilinear", align_corners=True)
    centred = by_torch(x, new_height, new_width, mode="bilinear", align_corners=False)
    for mode, wanted in (("STRICT_ALIGN_CORNERS", aligned), ("UNALIGN_CORNERS", centred)):
        types, (value,) = ours("resize_bilinear", x=x, sampling_mode=mode, **target)
        assert types == theirs("resize_bilinear", x=x, sampling_mode=mode, **target)[0]
        np.testing.assert_allclose(value, wanted, 1e-6, 1e-6)
        np.testing.assert_allclose(ours("resize", x=x, sampling_mode=mode, **args)[1][0], wanted, 1e-6, 1e-6)
    _, (value,) = ours("resize_nearest_neighbor", x=x, **target)
    np.testing.assert_array_equal(value, by_torch(x, new_height, new_width, mode="nearest"))
    _, (value,) = ours("resize", x=x, interpolation_mode="NEAREST_NEIGHBOR", sampling_mode="UNALIGN_CORNERS", **args)
    np.testing.assert_array_equal(value, by_torch(x, new_height, new_width, mode="nearest-exact"))


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, st.sampled_from([1, 2, 3, 1.5]), st.booleans())
def test_upsampling_agrees_with_torch(height, width, factor, align_corners):
    x, by = image(height, width), {"scale_factor_height": factor, "scale_factor_width": 2}
    size = (int(height * factor), 2 * width)
    types, (value,) = ours("upsample_bilinear", x=x, align_corners=align_corners, **by)
    assert types[0].shape == (2, 3, *size)
    np.testing.assert_allclose(value, by_torch(x, *size, mode="bilinear", align_corners=align_corners), 1e-6, 1e-6)
    _, (value,) = ours("upsample_nearest_neighbor", x=x, **by)
    np.testing.assert_array_equal(value, by_torch(x, *size, mode="nearest"))


@pytest.mark.parametrize(
    ("mode", "count", "places"),
    [
        ("UNALIGN_CORNERS", 5, [0, 0.1, 0.5, 0.9, 1]),
        ("ALIGN_CORNERS", 5, [0, 0.25, 0.5, 0.75, 1]),
        ("ALIGN_CORNERS", 1, [0.5]),
        ("STRICT_ALIGN_CORNERS", 1, [0]),
        ("DEFAULT", 5, [0, 0.4, 0.8, 1, 1]),
        ("OFFSET_CORNERS", 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("DEFAULT", 6, [0, 1 / 3, 2 / 3, 1, 1, 1]),
        ("OFFSET_CORNERS", 6, [1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12]),
    ],
)
def test_grids_are_those_of_the_documentation(mode, count, places):
    """The examples for two entries in coremltools, resize_bilinear."""
    np.testing.assert_allclose(np.clip(grid(2, count, mode), 0, 1), places, 1e-12)


def test_a_size_of_zero_keeps_that_of_x():
    x = TensorType(FP16, (1, 2, 3, None))
    assert KINDS["resize"].infer({"x": x, "shape": (1, 0, 0), "resized_dims": 2}) == (x,)


def test_a_size_known_only_at_run_time_is_unknown():
    x = TensorType(FP16, (1, 2, 3, 4))
    (result,) = KINDS["resize"].infer({"x": x, "shape": TensorType(INT32, (4,)), "resized_dims": 2})
    assert result == TensorType(FP16, (1, 2, None, None))


X = TensorType(FP16, (1, 3, 4))


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("upsample_bilinear", {"x": TensorType(FP16, (3, 4))}, "upsample_bilinear: x is .*rank 3 or more"),
        ("upsample_bilinear", {"x": X, "half_pixel_centers": True}, "upsample_bilinear: .*only one may be"),
        (
            "resize_nearest_neighbor",
            {"x": X, "target_size_height": 0, "target_size_width": 1},
            "resize_nearest_neighbor:",
        ),
        ("resize_bilinear", {"x": X, "sampling_mode": "BEST"}, "resize_bilinear: sampling_mode is 'BEST'"),
        ("resize", {"x": X, "shape": (1, 1), "resized_dims": 3}, "resize: resized_dims 3"),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
