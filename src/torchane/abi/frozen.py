"""Frozen weights as constants of a program: where each lies in the weight file, and in which form.

    weight (O, I) ── its port's order ──► dense ── [transposed] ──► shape in the program ── [rounded to few bits] ──► frozen.bin

A program is lowered without the numbers: its text names the places in a file that is written when they are known, once for each layer that
runs it. The numbers of a low-bit form are (whole number) x (scale of its row), rounded to fp16, in whichever direction a program multiplies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchane.abi.ports import PortLayout
from torchane.mil.blobs import BlobWriter, places
from torchane.mil.ir import Blob
from torchane.mil.types import FP16, DType

#: The file of a program's frozen weights, one record behind the other.
FROZEN_PATH = "@model_path/weights/frozen.bin"

#: Forms of a frozen weight in a program, and the element type of what is stored.
STORED: dict[str, DType] = {"fp16": FP16, "int8": DType.INT8, "int4": DType.INT4}

#: The smallest scale: fp16's smallest number with all digits, so that a row of tiny numbers or zeros has one.
_LEAST_SCALE = 2.0**-14


@dataclass(frozen=True)
class Constant:
    """One frozen weight within a program.

    position: among what its dispatches would read if it were an input. layout: of the port that it would have. shape: in the program.
    is_transposed: of a 1x1 filter, what lies as (inputs, outputs) in the port. form: how it is stored, a key of STORED; rounded: the form whose numbers
    it has, which may be stored in more bits.
    """

    position: int
    layout: PortLayout
    shape: tuple[int, ...]
    is_transposed: bool = False
    form: str = "fp16"
    rounded: str = "fp16"

    @property
    def parts(self) -> tuple[tuple[DType, tuple[int, ...]], ...]:
        """Its records: the numbers, and the scales of a low-bit form."""
        if self.form == "fp16":
            return ((FP16, self.shape),)
        return (STORED[self.form], self.shape), (FP16, (self.shape[0], *(1 for _ in self.shape[1:])))

    @property
    def size_bytes(self) -> int:
        """As it is stored."""
        return sum((dtype.bits * int(np.prod(shape)) + 7) // 8 for dtype, shape in self.parts)


def blobs_of(constants: Sequence[Constant]) -> list[tuple[Blob, ...]]:
    """Where the records of each constant lie."""
    offsets = iter(places([(dtype, int(np.prod(shape))) for constant in constants for dtype, shape in constant.parts]))
    return [tuple(Blob(FROZEN_PATH, next(offsets)) for _ in constant.parts) for constant in constants]


def frozen_file(constants: Sequence[Constant], weights: Sequence[np.ndarray], factors: Sequence[float]) -> bytes:
    """The file of a program's constants. weights: their numbers in the layout's logical shapes, float32 or float16, and `factors` what
    each is multiplied by, powers of two."""
    writer = BlobWriter(shares_equal=False)
    for constant, weight, factor in zip(constants, weights, factors, strict=True):
        for array, (dtype, _) in zip(stored(constant, weight, factor), constant.parts, strict=True):
            writer.add(array, dtype)
    return writer.to_bytes()


def stored(constant: Constant, weight: np.ndarray, factor: float = 1.0) -> tuple[np.ndarray, ...]:
    """The arrays of a constant's records."""
    if constant.form == "fp16":
        seen = weight if constant.rounded == "fp16" else dequantised(weight, constant.rounded)
        with np.errstate(over="ignore"):
            return (np.multiply(_placed(constant, seen), np.float32(factor), dtype=np.float32).astype(np.float16).reshape(constant.shape),)
    numbers, scales = quantised(weight, constant.form)
    return _placed(constant, numbers).reshape(constant.shape), (scales.astype(np.float32) * np.float32(factor)).astype(np.float16).reshape(-1, 1, 1, 1)


def _placed(constant: Constant, weight: np.ndarray) -> np.ndarray:
    """In the order of the program, contiguous."""
    dense = weight.transpose(constant.layout.perm)
    if constant.is_transposed:
        dense = dense.reshape(constant.shape[1], constant.shape[0]).T
    return np.ascontiguousarray(dense)


def quantised(weight: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers (O, I) int8, from -127 to 127 or -7 to 7, and a scale for each row, (O,) fp16."""
    most = (1 << (STORED[form].bits - 1)) - 1
    wide = weight.astype(np.float32)
    with np.errstate(over="ignore"):
        scales = np.maximum(np.abs(wide).max(axis=1) / most, _LEAST_SCALE).astype(np.float16)
    with np.errstate(invalid="ignore"):  # what is not finite is found where the weight is looked at
        numbers = np.clip(np.rint(wide / scales.astype(np.float32)[:, None]), -most, most)
    return np.nan_to_num(numbers).astype(np.int8), scales


def dequantised(weight: np.ndarray, form: str) -> np.ndarray:
    """What programs multiply by in place of a weight (O, I): float32, every number one of fp16's."""
    numbers, scales = quantised(weight, form)
    return (numbers.astype(np.float32) * scales.astype(np.float32)[:, None]).astype(np.float16).astype(np.float32)
