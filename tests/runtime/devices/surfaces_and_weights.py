"""Types of surfaces, and weight files, for the tests of devices."""

import numpy as np

from torchane.mil.blobs import BlobWriter
from torchane.mil.types import FP16, TensorType


def surface(*shape: int) -> TensorType:
    return TensorType(FP16, shape)


def weights(*arrays: np.ndarray) -> tuple[bytes, list[int]]:
    """A weight file, and the offset of each array in it."""
    writer = BlobWriter()
    offsets = [writer.add(array, FP16) for array in arrays]
    return writer.to_bytes(), offsets
