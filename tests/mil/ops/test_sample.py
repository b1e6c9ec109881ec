"""Images read at computed places, against PyTorch in float64. Core ML's own values: test_apple_suite.py."""

import numpy as np
import pytest
import torch
from second_opinion import ours

from torchane.errors import CompileError
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, FP32, TensorType

RNG = np.random.default_rng(9)
X = RNG.normal(size=(2, 3, 5, 4)).astype(np.float32)
PLACES = RNG.uniform(-1.6, 1.6, (2, 3, 6, 2)).astype(np.float32)
CASES = [("resample", "torch"), ("affine", "torch"), ("crop_resize", "interpolation by hand")]
PADDINGS = {"constant": "zeros", "border": "border", "reflection": "reflection", "symmetric": "reflection"}
functional = torch.nn.functional


def wide(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float64)


@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_resample_agrees_with_grid_sample(sampling, padding):
    """PyTorch reflects at the centres of the corner pixels if corners are aligned, else at their outer edges."""
    for align in {"reflection": (True,), "symmetric": (False,)}.get(padding, (True, False)):
        types, (value,) = ours(
            "resample",
            x=X,
            coordinates=PLACES,
            sampling_mode=sampling,
            padding_mode=padding,
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=align,
        )
        wanted = functional.grid_sample(wide(X), wide(PLACES), sampling, PADDINGS[padding], align)
        assert types == (TensorType(FP32, (2, 3, 3, 6)),)
        np.testing.assert_allclose(value, wanted.numpy(), 1e-5, 1e-6)


def test_coordinates_may_be_pixels_or_shares():
    how = {"sampling_mode": "bilinear", "padding_mode": "constant", "padding_value": 7.0, "align_corners": True}
    pixels = np.array([[[[3, 4], [1.5, 2]], [[0, 0], [9, 9]]]], np.float32)
    _, (by_pixels,) = ours("resample", x=X[:1], coordinates=pixels, coordinates_mode="unnormalized", **how)
    shares = pixels / np.array([3, 4], np.float32)
    _, (by_shares,) = ours("resample", x=X[:1], coordinates=shares, coordinates_mode="normalized_zero_to_one", **how)
    np.testing.assert_allclose(by_pixels, by_shares, 1e-5)
    np.testing.assert_allclose(by_pixels[0, :, 0, 1], (X[0, :, 2, 1] + X[0, :, 2, 2]) / 2, 1e-6)
    assert (by_pixels[0, :, 1, 1] == 7).all()


AFFINE = {
    "output_height": 3,
    "output_width": 7,
    "sampling_mode": "bilinear",
    "padding_mode": "constant",
    "padding_value": 0.0,
    "coordinates_mode": "normalized_minus_one_to_one",
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("align", [True, False])
def test_affine_agrees_with_torch(batch, align):
    matrix = RNG.normal(size=(batch, 6)).astype(np.float32)
    _, (value,) = ours("affine", x=X, transform_matrix=matrix, align_corners=align, **AFFINE)
    theta = wide(np.broadcast_to(matrix, (2, 6)).reshape(2, 2, 3))
    grid = functional.affine_grid(theta, [2, 3, 3, 7], align)
    np.testing.assert_allclose(value, functional.grid_sample(wide(X), grid, align_corners=align).numpy(), 1e-5, 1e-6)


def test_crop_resize_cuts_boxes_out_of_the_images_that_are_named():
    boxes = np.array([[1, 0, 3, 2], [0, 1, 4, 3]], np.float32)
    args = {"target_height": 3, "target_width": 3, "sampling_mode": "ALIGN_CORNERS"}
    types, (value,) = ours("crop_resize", x=X, boxes=boxes, box_indices=np.array([1, 0], np.int32), **args)
    assert types == (TensorType(FP32, (2, 3, 3, 3)),)
    np.testing.assert_allclose(value, np.stack([X[1, :, 1:4, 0:3], X[0, :, 0:5:2, 1:4]]), 1e-6)


@pytest.mark.parametrize(
    ("mode", "box"),
    [
        ("CORNERS_HEIGHT_FIRST", [1, 0, 3, 2]),
        ("CORNERS_WIDTH_FIRST", [0, 1, 2, 3]),
        ("CENTER_SIZE_HEIGHT_FIRST", [2, 1, 2, 2]),
        ("CENTER_SIZE_WIDTH_FIRST", [1, 2, 2, 2]),
    ],
)
def test_a_box_may_be_written_in_four_ways_and_two_shapes(mode, box):
    args = {"target_height": 3, "target_width": 3, "sampling_mode": "STRICT_ALIGN_CORNERS", "box_coordinate_mode": mode}
    _, (every,) = ours("crop_resize", x=X, roi=np.array(box, np.float32).reshape(1, 1, 4, 1, 1), **args)
    _, (one,) = ours("crop_resize", x=X, roi=np.array([1, *box], np.float32).reshape(1, 1, 5, 1, 1), **args)
    np.testing.assert_allclose(every, X[None, :, :, 1:4, 0:3], 1e-6)
    np.testing.assert_allclose(one, X[None, 1:, :, 1:4, 0:3], 1e-6)


def test_beyond_the_image_a_box_holds_the_pad_value():
    boxes = np.array([[0, 0, 2, 1], [0, 0, 1, 1]], np.float32)
    args = {"target_height": 2, "target_width": 1, "normalized_coordinates": True, "pad_value": 5.0}
    _, (value,) = ours("crop_resize", x=X, boxes=boxes, sampling_mode="STRICT_ALIGN_CORNERS", **args)
    np.testing.assert_allclose(value[0, :, :, 0], np.stack([X[0, :, 0, 0], [5, 5, 5]], axis=1), 1e-6)
    np.testing.assert_allclose(value[1, :, :, 0], X[1, :, [0, 4], 0].T, 1e-6)


XT = TensorType(FP16, (2, 3, 5, 4))
HOW = {"sampling_mode": "bilinear", "padding_mode": "border", "padding_value": 0.0, "coordinates_mode": "unnormalized", "align_corners": True}  # fmt: skip


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("resample", {"x": XT, "coordinates": TensorType(FP16, (2, 3, 6, 3))} | HOW, "resample: coordinates is"),
        (
            "resample",
            {"x": XT, "coordinates": TensorType(FP16, (2, 3, 6, 2))} | HOW | {"padding_mode": "wrap"},
            "resample: padding_mode is 'wrap'",
        ),
        (
            "affine",
            {"x": XT, "transform_matrix": TensorType(FP16, (3, 6)), "align_corners": True} | AFFINE,
            r"affine: transform_matrix is .*shape \[2, 6\]",
        ),
        (
            "affine",
            {"x": XT, "transform_matrix": TensorType(FP16, (1, 6)), "align_corners": True}
            | AFFINE
            | {"padding_value": 1.0},
            "affine: padding_value 1.0",
        ),
        ("crop_resize", {"x": XT}, "crop_resize: it takes roi or boxes"),
        ("crop_resize", {"x": XT, "boxes": TensorType(FP16, (2, 3))}, r"crop_resize: boxes is .*shape \[\?, 4\]"),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)


def test_a_box_of_an_image_that_is_not_there_is_refused_when_it_runs():
    with pytest.raises(CompileError, match="cut out of image 2, and there are 2"):
        KINDS["crop_resize"].evaluate({"x": X, "boxes": np.zeros((1, 4)), "box_indices": np.array([2])})
