"""Images (B, C, H, W) read at places that are computed: resample, affine, crop_resize.

Source: coremltools, mil/ops/defs/iOS15/image_resizing.py, iOS16 (pad_value) and iOS17 (crop_resize by boxes).
"""

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.resize import SAMPLING_MODES, grid
from torchane.mil.ops.support import require_choice, require_float, require_integer, require_rank, require_shape
from torchane.mil.types import TensorType

_PADDINGS = ("constant", "border", "reflection", "symmetric")
_COORDINATES = ("unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one")


def _pixels(places: np.ndarray, size: int, mode: str, align_corners: bool) -> np.ndarray:
    """Coordinates in pixels. Normalised ones reach the centres of the corner pixels if align_corners, else their
    outer edges."""
    if mode == "unnormalized":
        return places
    share = (places + 1) / 2 if mode == "normalized_minus_one_to_one" else places
    return share * (size - 1) if align_corners else share * size - 0.5


def _folded(places: np.ndarray, low: float, high: float) -> np.ndarray:
    """Reflected at both ends until they lie between them."""
    span = high - low
    if span <= 0:
        return np.zeros_like(places)
    turned = np.mod(places - low, 2 * span)
    return low + np.minimum(turned, 2 * span - turned)


def _at(image: np.ndarray, y: np.ndarray, x: np.ndarray, outside: float) -> np.ndarray:
    """image (C, H, W) at whole places; `outside` beyond its edges."""
    _, height, width = image.shape
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    rows, columns = np.clip(y, 0, height - 1).astype(np.int64), np.clip(x, 0, width - 1).astype(np.int64)
    return np.where(inside, image[:, rows, columns], outside)


def _bilinear(image: np.ndarray, y: np.ndarray, x: np.ndarray, outside: float) -> np.ndarray:
    """image (C, H, W) at fractional places; each neighbour beyond the edges counts as `outside`."""
    top, left = np.floor(y), np.floor(x)
    down, right = y - top, x - left
    upper = _at(image, top, left, outside) * (1 - right) + _at(image, top, left + 1, outside) * right
    lower = _at(image, top + 1, left, outside) * (1 - right) + _at(image, top + 1, left + 1, outside) * right
    return upper * (1 - down) + lower * down


resample = OpKind("resample", operands=("x", "coordinates"))


@resample.infers
def _(
    x: TensorType,
    coordinates: TensorType,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> TensorType:
    """x (B, C, H, W) at coordinates (B, H', W', 2), in the order x, y -> (B, C, H', W')."""
    require_float("resample", x=x)
    require_rank("resample", (4,), x=x, coordinates=coordinates)
    require_shape("resample", (x.shape[0], None, None, 2), coordinates=coordinates)
    require_choice("resample", "sampling_mode", sampling_mode, ("bilinear", "nearest"))
    require_choice("resample", "padding_mode", padding_mode, _PADDINGS)
    require_choice("resample", "coordinates_mode", coordinates_mode, _COORDINATES)
    return TensorType(x.dtype, (*x.shape[:2], *coordinates.shape[1:3]))


@resample.evaluates
def _(
    x: np.ndarray,
    coordinates: np.ndarray,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> np.ndarray:
    """The nearest pixel is found by rounding, halves to even, after coordinates outside have been mapped inside."""
    read = []
    for image, where in zip(x, coordinates.astype(np.float64)):
        places = []
        for size, axis in ((x.shape[2], 1), (x.shape[3], 0)):
            place = _pixels(where[..., axis], size, coordinates_mode, align_corners)
            if padding_mode == "reflection":
                place = _folded(place, 0, size - 1)
            elif padding_mode == "symmetric":
                place = _folded(place, -0.5, size - 0.5)
            places.append(place if padding_mode == "constant" else np.clip(place, 0, size - 1))
        if sampling_mode == "nearest":
            read.append(_at(image, np.round(places[0]), np.round(places[1]), padding_value))
        else:
            read.append(_bilinear(image, *places, padding_value))
    return np.stack(read)


affine = OpKind("affine", operands=("x", "transform_matrix"))


@affine.infers
def _(
    x: TensorType,
    transform_matrix: TensorType,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> TensorType:
    """Result (x, y) is x at (a0 x + a1 y + a2, b0 x + b1 y + b2), all from -1 to 1; transform_matrix (B or 1, 6)
    holds [a0, a1, a2, b0, b1, b2]. The other arguments have one value that Core ML takes."""
    require_float("affine", x=x, transform_matrix=transform_matrix)
    require_rank("affine", (4,), x=x)
    if transform_matrix.shape != (1, 6):
        require_shape("affine", (x.shape[0], 6), transform_matrix=transform_matrix)
    require_choice("affine", "sampling_mode", sampling_mode.lower(), ("bilinear",))
    require_choice("affine", "padding_mode", padding_mode.lower(), ("constant",))
    require_choice("affine", "coordinates_mode", coordinates_mode.lower(), ("normalized_minus_one_to_one",))
    if padding_value != 0 or min(output_height, output_width) < 1:
        raise CompileError(
            f"affine: padding_value {padding_value} and output size {output_height} by {output_width}; Core ML pads "
            "with 0, and sizes are 1 or more."
        )
    return TensorType(x.dtype, (*x.shape[:2], output_height, output_width))


@affine.evaluates
def _(
    x: np.ndarray,
    transform_matrix: np.ndarray,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> np.ndarray:
    across, down = (_unit(count, align_corners) for count in (output_width, output_height))
    read = []
    for image, matrix in zip(x, np.broadcast_to(transform_matrix, (len(x), 6))):
        from_x = matrix[0] * across[None, :] + matrix[1] * down[:, None] + matrix[2]
        from_y = matrix[3] * across[None, :] + matrix[4] * down[:, None] + matrix[5]
        places = (
            _pixels(from_y, x.shape[2], coordinates_mode.lower(), align_corners),
            _pixels(from_x, x.shape[3], coordinates_mode.lower(), align_corners),
        )
        read.append(_bilinear(image, *places, padding_value))
    return np.stack(read)


def _unit(count: int, align_corners: bool) -> np.ndarray:
    """The coordinates of `count` pixels, from -1 to 1."""
    i = np.arange(count)
    return 2 * i / max(1, count - 1) - 1 if align_corners else (2 * i + 1) / count - 1


crop_resize = OpKind("crop_resize", operands=("x", "roi", "boxes", "box_indices"))
_BOXES = ("CORNERS_HEIGHT_FIRST", "CORNERS_WIDTH_FIRST", "CENTER_SIZE_HEIGHT_FIRST", "CENTER_SIZE_WIDTH_FIRST")


@crop_resize.infers
def _(
    x: TensorType,
    roi: TensorType | None = None,
    boxes: TensorType | None = None,
    box_indices: TensorType | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> TensorType:
    """Boxes cut out of x (B, C, H, W) and resized, linearly.

    Until iOS16 by roi: (N, 1, 4, 1, 1) cuts every image -> (N, B, C, H', W'), and (N, 1, 5, 1, 1), whose first entry
    names the image -> (N, 1, C, H', W'). From iOS17 by boxes (N, 4) and box_indices (N,), the images, counted up
    if left out -> (N, C, H', W'). Normalised coordinates run from 0 to 1, others to H - 1 and W - 1.
    """
    require_float("crop_resize", x=x)
    require_rank("crop_resize", (4,), x=x)
    require_choice("crop_resize", "box_coordinate_mode", box_coordinate_mode, _BOXES)
    require_choice("crop_resize", "sampling_mode", sampling_mode, SAMPLING_MODES)
    size = (x.shape[1], target_height, target_width)
    if (roi is None) == (boxes is None) or min(size[1:]) < 1:
        raise CompileError(
            f"crop_resize: it takes roi or boxes, one of them, and a target of 1 by 1 or more; roi is {roi}, "
            f"boxes {boxes}, the target {target_height} by {target_width}."
        )
    if boxes is not None:
        require_shape("crop_resize", (None, 4), boxes=boxes)
        if box_indices is not None:
            require_integer("crop_resize", box_indices=box_indices)
        require_shape("crop_resize", boxes.shape[:1], box_indices=box_indices)
        return TensorType(x.dtype, (boxes.shape[0], *size))
    require_rank("crop_resize", (5,), roi=roi)
    entries = roi.shape[2]
    require_shape("crop_resize", (None, 1, entries if entries in (4, 5) else 4, 1, 1), roi=roi)
    return TensorType(x.dtype, (roi.shape[0], x.shape[0] if entries == 4 else 1, *size))


@crop_resize.evaluates
def _(
    x: np.ndarray,
    roi: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    box_indices: np.ndarray | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> np.ndarray:
    rows = boxes if roi is None else roi.reshape(len(roi), -1)
    height, width = x.shape[2:]
    unit = (height - 1, width - 1) if normalized_coordinates else (1, 1)

    def cut(image: np.ndarray, box: np.ndarray) -> np.ndarray:
        places = [
            _box_places(start * by * spatial_scale, end * by * spatial_scale, count, sampling_mode)
            for (start, end), by, count in zip(_ends(box, box_coordinate_mode), unit, (target_height, target_width))
        ]
        y, place_x = np.meshgrid(*places, indexing="ij")
        inside = (y >= 0) & (y <= height - 1) & (place_x >= 0) & (place_x <= width - 1)
        return np.where(inside, _bilinear(image, y, place_x, pad_value), pad_value)

    def image(index: float) -> np.ndarray:
        if not 0 <= index < len(x):
            raise CompileError(f"crop_resize: a box is cut out of image {index:g}, and there are {len(x)}.")
        return x[int(index)]

    if roi is None:
        images = np.arange(len(rows)) if box_indices is None else box_indices
        return np.stack([cut(image(index), box) for index, box in zip(images, rows)])
    if rows.shape[1] == 5:
        return np.stack([cut(image(row[0]), row[1:])[None] for row in rows])
    return np.stack([np.stack([cut(each, row) for each in x]) for row in rows])


def _ends(box: np.ndarray, mode: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """The start and end of a box, down and across."""
    a, b, c, d = (float(value) for value in box)
    if mode.startswith("CENTER"):
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return ((a, c), (b, d)) if mode.endswith("HEIGHT_FIRST") else ((b, d), (a, c))


def _box_places(start: float, end: float, count: int, mode: str) -> np.ndarray:
    """Where the results lie along a side of a box, which may run backwards; within it, but for OFFSET_CORNERS,
    whose steps are 1 / count of a pixel or more."""
    places = start + grid(end - start + 1, count, mode)
    return places if mode == "OFFSET_CORNERS" else np.clip(places, min(start, end), max(start, end))
