"""What is written into a surface for a host value: masks in fp16's range, and the axes in the surface's order."""

import numpy as np

from torchane.abi.numbers import EXCLUDED, LEFT_OUT, MASKED
from torchane.abi.ports import PortLayout
from torchane.plan import Copy


def in_range(source: np.ndarray, copy: Copy) -> np.ndarray:
    """The values to stage: what stands for "masked" in them (-inf, the lowest float) is written as fp16 can hold it. Bools hold nothing of the kind."""
    if source.dtype == np.bool_:
        return source
    if copy.masks:
        source = _with_masks_in_range(source, copy.masks)
    if copy.is_mask:
        beyond = np.where(source == -np.inf, np.float32(EXCLUDED), np.float32(MASKED))
        source = np.where(source <= LEFT_OUT, beyond, source)
    return source


def _with_masks_in_range(source: np.ndarray, factors: tuple[float, ...]) -> np.ndarray:
    """What is a factor becomes MASKED or its mirror, and twice that what is a multiple of it, masks added to each other: less
    masked stays more. An infinity, two of the lowest numbers added, becomes EXCLUDED or its mirror."""
    magnitude = np.abs(source)
    stands = np.zeros(source.shape, np.float32)
    for factor in factors:
        with np.errstate(over="ignore", invalid="ignore"):
            times = magnitude / np.float32(abs(factor))
            is_multiple = (np.abs(times - np.round(times)) < 1e-4) & (times > 0.5) & (times < 4.5)
        stands = np.maximum(stands, np.where(is_multiple, -MASKED * np.minimum(np.round(times), 2), 0))
    source = np.where(stands > 0, np.copysign(stands, source), source)
    return np.where(np.isinf(source), np.copysign(np.float32(-EXCLUDED), source), source)


def meeting(surface: np.ndarray, source: np.ndarray, layout: PortLayout) -> tuple[np.ndarray, np.ndarray]:
    """The surface and the host's values as two arrays of one shape."""
    assert source.shape == layout.logical, f"a value of shape {source.shape} was to be staged as {layout.logical}"
    stored = source.transpose(layout.perm)
    if layout.used == layout.shape[-1]:
        return surface.reshape(stored.shape), stored
    surface[..., layout.used :] = 0  # a NaN that was there before times a constant zero is NaN
    return surface[..., : layout.used], np.ascontiguousarray(stored).reshape(*layout.shape[:-1], layout.used)


def is_mirror(surface: np.ndarray, stored: np.ndarray, source: np.ndarray, address: int) -> bool:
    """Of what `meeting` gives: all of the surface holds the float32 numbers that lie at this address, in their order."""
    whole = stored.flags.c_contiguous and source.flags.c_contiguous and stored.size == surface.size
    return whole and source.dtype == np.float32 and source.__array_interface__["data"][0] == address
