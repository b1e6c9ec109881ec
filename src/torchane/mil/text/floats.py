"""How floating-point numbers are spelled in MIL text: decimal, hexadecimal as C's `%a`, `inf`, `nan`.

A NaN that is not the usual one is spelled with its bits, `nan(0x7e01)`, so that printing loses nothing.
"""

import math
from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np

from torchane.mil.formats import narrowed, widened
from torchane.mil.types import DType

_BITS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def from_text(spelling: str) -> float:
    """Decimal, hexadecimal (`0x1.8p+3`), `inf` or `nan` -> float64; too large becomes infinite.
    Raises ValueError for anything else."""
    if "x" in spelling or "X" in spelling:
        try:
            return float.fromhex(spelling)
        except OverflowError:
            return -np.inf if spelling.lstrip()[0] == "-" else np.inf
    return float(spelling)


def nan_bits(spelling: str) -> int | None:
    """The bit pattern that `nan(0x...)` spells out; None for every other spelling."""
    _, bracket, payload = spelling.partition("(")
    return int(payload.rstrip(")"), 16) if bracket else None


def to_bits(array: np.ndarray) -> np.ndarray:
    """The same memory as unsigned integers."""
    return array.view(_BITS[array.dtype.itemsize * 8])


def is_nan(bits: int, dtype: DType) -> bool:
    """Whether `bits` are a NaN of this type."""
    if bits >> dtype.bits:
        return False
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return bool(np.isnan(widened(np.array([bits], _BITS[dtype.bits]).view(dtype.numpy), dtype))[0])


def is_usual_nan(bits: int, dtype: DType) -> bool:
    """Whether `bits` are what `nan` or `-nan` reads back to."""
    return bits in _usual_nans(dtype)


@cache
def _usual_nans(dtype: DType) -> tuple[int, int]:
    plus, minus = to_bits(narrowed(np.array([np.nan, -np.nan]), dtype)).tolist()
    return plus, minus


def hexadecimal(value: float) -> str:
    """C's `%a` as Apple's compiler writes it: `0x1.8p+3`, no trailing zeros; `inf`, `-inf`, `nan`, `-nan`."""
    return _hexadecimal(value, math.copysign(1.0, value))


def readable(value: float) -> str:
    """A decimal of at most eight characters where it is exact, so that no reader rounds; else hexadecimal."""
    return _readable(value, math.copysign(1.0, value))


# Programs repeat their numbers. The sign is an argument of its own: to the cache, -0.0 is 0.0.
@lru_cache(maxsize=65536)
def _hexadecimal(value: float, sign: float) -> str:
    if math.isnan(value):
        return "-nan" if sign < 0 else "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    mantissa, exponent = value.hex().split("p")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}p{exponent}"


@lru_cache(maxsize=65536)
def _readable(value: float, sign: float) -> str:
    if math.isfinite(value):
        short = repr(value)
        if len(short) <= 8 and "e" not in short and _is_exact(short, value):
            return short
    return _hexadecimal(value, sign)


def speller(spelling: str, dtype: DType) -> Callable[[float], str]:
    """How a style spells the numbers of a type; see `style.Style`."""
    if spelling == "hexadecimal":
        return hexadecimal
    if spelling == "exact" or dtype not in _SHORTEST:
        return readable
    return lambda value: decimal(value, dtype, fixed=spelling == "fixed")


#: The types whose shortest decimals NumPy knows.
_SHORTEST = {DType.FP16, DType.FP32, DType.FP64}


def decimal(value: float, dtype: DType, *, fixed: bool) -> str:
    """The shortest plain decimal that reads back to this number of `dtype`; six digits behind the point if `fixed`
    and they suffice."""
    if not math.isfinite(value):
        return hexadecimal(value)
    if fixed and narrowed(np.array(float(f"{value:f}")), dtype) == value:
        return f"{value:f}"
    if value.is_integer() and abs(value) < 2**24:
        return f"{value:.1f}"  # NumPy's shortest of -65504 is -65500.0
    short = np.format_float_positional(dtype.numpy.type(value), unique=True, trim="0")
    return short if len(short) <= 24 else hexadecimal(value)


def _is_exact(decimal: str, value: float) -> bool:
    """Whether a plain decimal is the number itself and not the nearest one to it."""
    whole, _, fraction = decimal.lstrip("-").partition(".")
    numerator, denominator = abs(value).as_integer_ratio()
    return int(whole + fraction) * denominator == numerator * 10 ** len(fraction)
