"""Number formats that NumPy lacks: bf16 and the two 8-bit floats, between bit patterns and float64.

bf16 is fp32 without its last 16 bits. fp8e4m3fn has no infinities (S.1111.111 is NaN), fp8e5m2 is fp16
without its last 8 bits. Rounding is to nearest, ties to the even pattern; what is too large becomes an
infinity, or NaN in e4m3fn. Source: Micikevicius et al. 2022, arXiv 2209.05433, section 3.
"""

from functools import cache

import numpy as np

from torchane.mil.types import DType


def widened(array: np.ndarray, dtype: DType) -> np.ndarray:
    """The values of a tensor as float64 if they are floats, else as they are."""
    with np.errstate(invalid="ignore"):  # a signalling NaN is as good as any
        if dtype in _DECODERS:
            return _DECODERS[dtype](array)
        return array.astype(np.float64) if dtype.is_float else array


def narrowed(array: np.ndarray, dtype: DType) -> np.ndarray:
    """Values in the NumPy type that carries `dtype`, rounded once; integers are cut off as NumPy does."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype in _DECODERS:
            return _encoded(np.asarray(array, np.float64), dtype)
        return np.asarray(array).astype(dtype.numpy)


def _bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _fp8e5m2(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint16) << 8).view(np.float16).astype(np.float64)


def _fp8e4m3fn(bits: np.ndarray) -> np.ndarray:
    bits = bits.astype(np.int64)
    exponent, fraction = bits >> 3 & 15, bits & 7
    size = np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent - 10))
    size[bits & 127 == 127] = np.nan
    return np.where(bits & 128, -size, size)


_DECODERS = {DType.BF16: _bf16, DType.FP8E4M3FN: _fp8e4m3fn, DType.FP8E5M2: _fp8e5m2}


@cache
def _ladder(dtype: DType) -> tuple[np.ndarray, np.ndarray]:
    """Every finite value from 0 up, in order of its pattern, and the halfway points above each."""
    patterns = np.arange(1 << (dtype.bits - 1))
    values = _DECODERS[dtype](patterns.astype(dtype.numpy))
    values = values[np.isfinite(values)]
    return values, np.append((values[1:] + values[:-1]) / 2, values[-1] + (values[-1] - values[-2]) / 2)


def _encoded(array: np.ndarray, dtype: DType) -> np.ndarray:
    _, halfway = _ladder(dtype)
    size = np.abs(array)
    below = np.searchsorted(halfway, size)  # the first pattern whose halfway point is not passed
    tie = (below < len(halfway)) & (halfway[np.minimum(below, len(halfway) - 1)] == size)
    pattern = below + (tie & (below % 2 == 1))
    overflow = len(halfway)  # infinity follows the largest value; in e4m3fn NaN does
    pattern = np.minimum(pattern, overflow)
    pattern = np.where(np.isnan(array), (1 << (dtype.bits - 1)) - 1, pattern)
    return (pattern + (np.signbit(array).astype(np.int64) << (dtype.bits - 1))).astype(dtype.numpy)
