"""Floating-point numbers of every MIL type, between their bits, float64 and text.

NumPy lacks bf16 and the two fp8 types: their values are carried as bit patterns (`DType.numpy`), and
rounded here, once, to nearest even. fp8e4m3fn has no infinity: what overflows becomes NaN.
Source: IEEE 754-2019, 4.3.1; Micikevicius et al. 2022, arXiv 2209.05433, table 1.
"""

from functools import lru_cache

import numpy as np

from torchane.mil.types import DType

# bits of exponent, bits of mantissa, whether there is an infinity
_SMALL = {DType.BF16: (8, 7, True), DType.FP8E5M2: (5, 2, True), DType.FP8E4M3FN: (4, 3, False)}
_BITS = {16: np.uint16, 32: np.uint32, 64: np.uint64, 8: np.uint8}


def encode(values: np.ndarray, dtype: DType) -> np.ndarray:
    """float64 values -> an array of `dtype.numpy`, each rounded once; too large becomes infinite."""
    if dtype not in _SMALL:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return values.astype(dtype.numpy)
    exponent_bits, mantissa_bits, has_infinity = _SMALL[dtype]
    bias = (1 << (exponent_bits - 1)) - 1
    magnitude = np.abs(values)
    finite = np.isfinite(magnitude)
    _, exponent = np.frexp(np.where(finite, magnitude, 0.0))
    exponent = np.maximum(exponent - 1, 1 - bias)
    scaled = np.ldexp(np.where(finite, magnitude, 0.0), mantissa_bits - exponent)
    # A carry out of the mantissa moves into the exponent by itself: the codes are in order of value.
    code = np.rint(scaled).astype(np.int64) + ((exponent + bias - 1).astype(np.int64) << mantissa_bits)
    top = (1 << (exponent_bits + mantissa_bits)) - 1
    infinity = top - (1 << mantissa_bits) + 1 if has_infinity else top
    code = np.where(finite & (code < infinity), code, infinity)
    quiet = infinity | (1 << (mantissa_bits - 1)) if has_infinity else top
    code = np.where(np.isnan(values), quiet, code)
    sign = np.signbit(values).astype(np.int64) << (exponent_bits + mantissa_bits)
    return (code | sign).astype(dtype.numpy)


def decode(values: np.ndarray, dtype: DType) -> np.ndarray:
    """An array of `dtype.numpy` -> the same numbers in float64, exactly."""
    if dtype not in _SMALL:
        return values.astype(np.float64)
    exponent_bits, mantissa_bits, has_infinity = _SMALL[dtype]
    bias = (1 << (exponent_bits - 1)) - 1
    code = values.astype(np.int64) & ((1 << (exponent_bits + mantissa_bits)) - 1)
    exponent = code >> mantissa_bits
    mantissa = code & ((1 << mantissa_bits) - 1)
    normal = np.ldexp(1.0 + mantissa / (1 << mantissa_bits), exponent - bias)
    number = np.where(exponent > 0, normal, np.ldexp(mantissa.astype(np.float64), 1 - bias - mantissa_bits))
    last = exponent == (1 << exponent_bits) - 1
    if has_infinity:
        number = np.where(last, np.where(mantissa == 0, np.inf, np.nan), number)
    else:
        number = np.where(last & (mantissa == (1 << mantissa_bits) - 1), np.nan, number)
    return np.copysign(number, np.where(values.astype(np.int64) >> (exponent_bits + mantissa_bits), -1.0, 1.0))


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


def is_canonical_nan(bits: int, dtype: DType) -> bool:
    """Whether `bits` are what `nan` or `-nan` reads back to."""
    return bits in _canonical_nans(dtype)


@lru_cache(maxsize=None)
def _canonical_nans(dtype: DType) -> tuple[int, int]:
    both = to_bits(encode(np.array([np.nan, -np.nan]), dtype))
    return int(both[0]), int(both[1])


@lru_cache(maxsize=65536)
def hexadecimal(value: float) -> str:
    """C's `%a` as Apple's compiler writes it: `0x1.8p+3`, no trailing zeros; `inf`, `-inf`, `nan`, `-nan`."""
    if value != value:
        return "-nan" if np.signbit(value) else "nan"
    if value in (np.inf, -np.inf):
        return "inf" if value > 0 else "-inf"
    mantissa, exponent = value.hex().split("p")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}p{exponent}"


@lru_cache(maxsize=65536)
def readable(value: float) -> str:
    """A decimal of at most eight characters where it is exact, so that no reader rounds; else hexadecimal."""
    if value == value and value not in (np.inf, -np.inf):
        short = repr(value)
        if len(short) <= 8 and "e" not in short and _is_exact(short, value):
            return short
    return hexadecimal(value)


def _is_exact(decimal: str, value: float) -> bool:
    """Whether a plain decimal is the number itself and not the nearest one to it."""
    whole, _, fraction = decimal.lstrip("-").partition(".")
    numerator, denominator = abs(value).as_integer_ratio()
    return int(whole + fraction) * denominator == numerator * 10 ** len(fraction)
