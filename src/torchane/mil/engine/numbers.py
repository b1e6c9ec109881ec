"""fp16 as the engine reads and writes it, between bits and float64.

    read    exponent field 31 is a number like any other: 0x7C00 is 65536, 0x7E00 is 98304, there is no NaN
    write   to nearest, halves away from zero; from 65520 on an infinity; what is no number is 0

Evidence: reading and halves, 751K on M6 and M4 (notes/numerics.md); halves proven by a capture of 49,152
outputs. sqrt(-1) = 0, from which "no number is 0" is taken: GDE on M1 to M5.
"""

import numpy as np

#: From here on a value rounds to an infinity: halfway between 65504 and 65536.
OVERFLOW = 65520.0
#: The exponent of the smallest normal number; subnormal ones count as this too.
LOWEST_EXPONENT = -14
FRACTION_BITS = 10


def decoded(array: np.ndarray) -> np.ndarray:
    """fp16 to float64, every pattern a finite number."""
    bits = np.asarray(array, np.float16).view(np.uint16)
    values = np.asarray(array, np.float64)
    special = bits & 0x7C00 == 0x7C00
    if special.any():
        size = 65536.0 * (1 + (bits & 0x3FF) / 1024)
        values = np.where(special, np.where(bits & 0x8000, -size, size), values)
    return values


def halves(values: np.ndarray, ties: str = "away") -> np.ndarray:
    """float64 to fp16: halves away from zero, or to `even`. The sign of a zero is kept."""
    values = np.asarray(values, np.float64)
    values = np.where(np.isnan(values), 0.0, values)
    if ties == "even":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    size = np.abs(values)
    _, exponent = np.frexp(size)  # size is below 2^exponent
    step = np.ldexp(1.0, np.maximum(exponent - 1, LOWEST_EXPONENT) - FRACTION_BITS)
    with np.errstate(invalid="ignore"):
        steps = np.floor(size / step)
        rounded = (steps + (size / step - steps >= 0.5)) * step
    rounded = np.where(size >= OVERFLOW, np.inf, rounded)
    return np.copysign(rounded, values).astype(np.float16)


def rounded(values: np.ndarray, ties: str = "away") -> np.ndarray:
    """What an fp16 register holds of float64 values, as the next operation reads it."""
    return decoded(halves(values, ties))


def exponents(values: np.ndarray) -> np.ndarray:
    """floor(log2 |v|) of decoded fp16 values, held at -14 below that and for 0."""
    return np.where(values == 0, LOWEST_EXPONENT, np.maximum(np.frexp(values)[1] - 1, LOWEST_EXPONENT))
