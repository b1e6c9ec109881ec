"""Functions by table: 33 values in fp16, straight lines between them, symmetry and exponents set apart.

    sigmoid [-8, 8] and two lines    tanh [0, 4], odd    erf [0, 2], odd    sin [0, pi/2]    silu [-8, 8]    gelu [-4, 4]
    exp 2^(i/32)       log2 [0.5, 1]       1/m [0.5, 1]       sqrt, rsqrt [0.5, 2]

Knots read from compiled programs for h18g by 751K (notes/numerics.md, F3b). With the roundings written here the
largest errors over all fp16 numbers are those of its dense sweeps on an M6, and lie at the same numbers
(data/06_numerics/lut_ulp_m6.txt and f3_lut_m6.txt; tests/mil/engine/test_tables.py), but for tanh, whose
largest error is 1.636e-3 here and 1.613e-3 there.

The knots of gelu and silu are fitted. They are not published, but six numbers of the study are: what both give just below 0,
one knot of each, and their largest errors. Least squares over 25 numbers per power of two from 2^-14 on, of both signs,
and 0, give all six; the sampling is our inference (some 16 to 64 per power of two miss a few by a last bit, evenly spaced
numbers miss them by far).
"""

import math
from collections.abc import Callable

import numpy as np

from torchane.mil.engine.numbers import halves, rounded
from torchane.mil.engine.settings import Exponential, Settings

Function = Callable[[np.ndarray], np.ndarray]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _exact_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _exact_silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


#: Bits after the point that an interpolated value of sigmoid keeps, by a capture: 254 of 256 columns, 250 without.
SIGMOID_FRACTION_BITS = 19
#: Beyond its table sigmoid goes on in lines, slope and height, until it is 0 and 1: in a public program for the M1 (TGR, its
#: numbers to three or four digits); each joins the table's end to that place. A sweep of 751K's on an M6 agrees: its largest
#: error in steps lies at -9.9375 and is that of a 0 there, and it has none at -9.5078, where the line meets the function.
SIGMOID_ENDS = (-9.9375, 8.3203125)
#: 2^u is 0 for every u below: half of the smallest fp16 number is 2^-25.
LOWEST_POWER = -26.0


def fitted(function: Function, low: float, high: float, count: int) -> Function:
    """The values at the knots of the lines that come closest to the function, as a function of the knots."""
    sizes = np.concatenate([np.ldexp(1 + np.arange(25) / 25, e) for e in range(-14, int(math.log2(high)) + 1)])
    sizes = sizes[sizes <= high]
    x = np.concatenate([-sizes, sizes, [0.0]])
    place = (x - low) / ((high - low) / (count - 1))
    below = np.minimum(np.floor(place), count - 2).astype(np.int64)
    weights = np.zeros((len(x), count))
    weights[np.arange(len(x)), below], weights[np.arange(len(x)), below + 1] = 1 - (place - below), place - below
    values = np.linalg.solve(weights.T @ weights, weights.T @ function(x))
    return lambda knots: values


class Table:
    """Values of a function at equal distances from `low` to `high`, in fp16, and what lies between."""

    def __init__(self, function: Function, low: float, high: float, count: int, is_half: bool = True):
        self.low, self.step = low, (high - low) / (count - 1)
        knots = function(low + self.step * np.arange(count))
        self.knots = halves(knots).astype(np.float64) if is_half else knots

    def __call__(self, x: np.ndarray, fraction_bits: int | None = None) -> np.ndarray:
        """x within the table -> the value on the line, halves of the last kept bit up."""
        place = (x - self.low) / self.step
        below = np.clip(np.floor(place), 0, len(self.knots) - 2).astype(np.int64)
        left, right = self.knots[below], self.knots[below + 1]
        value = left + (right - left) * (place - below)
        return value if fraction_bits is None else _kept(value, fraction_bits)


_SIGMOID = Table(lambda x: 1 / (1 + np.exp(-x)), -8, 8, 33)
_TANH = Table(np.tanh, 0, 4, 33)
_ERF = Table(_erf, 0, 2, 33)
_SIN = Table(np.sin, 0, math.pi / 2, 33)
_LOG2 = Table(np.log2, 0.5, 1, 33)
_INVERSE = Table(lambda x: 1 / x, 0.5, 1, 33)
_SQRT = Table(np.sqrt, 0.5, 2, 25)
_RSQRT = Table(lambda x: 1 / np.sqrt(x), 0.5, 2, 25)
_GELU = Table(fitted(_exact_gelu, -4, 4, 33), -4, 4, 33)
_SILU = Table(fitted(_exact_silu, -8, 8, 33), -8, 8, 33)
#: Below its table silu goes on in a line: in 751K's sweep its error vanishes at these two numbers.
SILU_MEETS = (-9.5859375, -8.34375)
_POWER = {is_half: Table(np.exp2, 0, 1, 33, is_half) for is_half in (True, False)}
#: fp16(ln 2).
LN_2 = 0.693359375


def exp(x: np.ndarray, rule: Exponential, ties: str = "away") -> np.ndarray:
    """e^x before its rounding to fp16; x decoded fp16."""
    u = x * rule.multiplier
    u = halves(u, ties).astype(np.float64) if rule.input_is_half else u
    u = np.clip(u, LOWEST_POWER - 1, 128.0)
    whole = np.floor(u)
    value = _POWER[rule.table_is_half](u - whole, rule.fraction_bits)
    return np.where(u < LOWEST_POWER, 0.0, np.ldexp(value, whole.astype(np.int64)))


def exp2(u: np.ndarray, rule: Exponential) -> np.ndarray:
    """2^u before its rounding; the table of exp without its multiplication."""
    u = np.clip(u, LOWEST_POWER - 1, 128.0)
    whole = np.floor(u)
    return np.where(u < LOWEST_POWER, 0.0, np.ldexp(_POWER[rule.table_is_half](u - whole, rule.fraction_bits), whole.astype(np.int64)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    low, high = SIGMOID_ENDS
    within = np.where(x < -8, _line(x, low, 0.0, -8, _SIGMOID.knots[0]), _line(x, 8, _SIGMOID.knots[-1], high, 1.0))
    value = np.where(np.abs(x) > 8, _kept(within, SIGMOID_FRACTION_BITS), _SIGMOID(np.clip(x, -8, 8), SIGMOID_FRACTION_BITS))
    return np.where(x <= low, 0.0, np.where(x >= high, 1.0, value))


def _line(x: np.ndarray, left: float, from_: float, right: float, to: float) -> np.ndarray:
    """Through two points, slope and height in fp16."""
    slope, height = rounded(np.array([(to - from_) / (right - left), (from_ * right - to * left) / (right - left)]))
    return slope * x + height


def _kept(values: np.ndarray, fraction_bits: int) -> np.ndarray:
    """So many bits after the point, halves up."""
    return np.floor(values * 2.0**fraction_bits + 0.5) / 2.0**fraction_bits


def tanh(x: np.ndarray) -> np.ndarray:
    """1 beyond 4, where the table ends lower: measured as a jump."""
    return np.copysign(np.where(np.abs(x) > 4, 1.0, _TANH(np.minimum(np.abs(x), 4))), x)


def erf(x: np.ndarray) -> np.ndarray:
    """Beyond 2 the exact value: the measured errors are small there, how is not known."""
    return np.where(np.abs(x) > 2, _erf(x), np.copysign(_ERF(np.minimum(np.abs(x), 2)), x))


def sin(x: np.ndarray) -> np.ndarray:
    quarter, sign = np.abs(x) % math.pi, np.where(np.abs(x) % (2 * math.pi) < math.pi, 1.0, -1.0)
    return np.copysign(1.0, x) * sign * _SIN(np.minimum(quarter, math.pi - quarter))


def gelu(x: np.ndarray) -> np.ndarray:
    return np.where(x < -4, 0.0, np.where(x > 4, x, _GELU(np.clip(x, -4, 4))))


def silu(x: np.ndarray) -> np.ndarray:
    left, right = SILU_MEETS
    below = np.minimum(_line(x, left, _exact_silu(np.float64(left)), right, _exact_silu(np.float64(right))), 0.0)
    return np.where(x < -8, below, np.where(x > 8, x, _SILU(np.clip(x, -8, 8))))


def log(x: np.ndarray) -> np.ndarray:
    """log2 of the mantissa, plus the exponent, times ln 2: three roundings to fp16. log 0 is -45440 on M1 to M5
    (GDE): -inf as the number that it decodes to, times ln 2. Below 0: taken as 0."""
    mantissa, exponent = np.frexp(np.maximum(x, 0.0))
    return np.where(x > 0, rounded(rounded(_LOG2(np.clip(mantissa, 0.5, 1))) + exponent), -65536.0) * LN_2


def sqrt(x: np.ndarray) -> np.ndarray:
    mantissa, half = _even_exponent(x)
    return np.where(x > 0, np.ldexp(_SQRT(mantissa), half), 0.0)


def rsqrt(x: np.ndarray) -> np.ndarray:
    """Infinite at 0 and 0 below."""
    mantissa, half = _even_exponent(x)
    return np.where(x > 0, np.ldexp(_RSQRT(mantissa), -half), np.where(x == 0, np.inf, 0.0))


def inverse(x: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(np.abs(x))
    size = np.ldexp(_INVERSE(np.clip(mantissa, 0.5, 1)), -exponent)
    return np.copysign(np.where(x == 0, np.inf, size), x)


def _even_exponent(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x > 0 as mantissa * 4^half, the mantissa in [0.5, 2)."""
    mantissa, exponent = np.frexp(np.where(x > 0, x, 1.0))
    odd = exponent % 2 == 1
    return np.where(odd, mantissa * 2, mantissa), (exponent - odd) // 2


#: From this size of 1 + e^x on softplus is 0.
SOFTPLUS_CEILING = 2.0**15


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + e^x) as it stands: without the shift that would keep e^x small it ends in 0."""
    size = np.logaddexp(0.0, x)
    return np.where(size >= math.log(SOFTPLUS_CEILING), 0.0, size)


def log_sum_exp(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
    """log of the sum of e^x, the sum in fp16: an infinite one gives 0, one that is 0 what `log` gives."""
    with np.errstate(over="ignore", divide="ignore"):
        total = halves(np.exp(x).sum(axis=axis, keepdims=keepdims)).astype(np.float64)
        return np.where(np.isinf(total), 0.0, np.where(total > 0, np.log(total), log(total)))


def function(name: str, settings: Settings) -> Function | None:
    """The table function of that MIL op, on decoded values, before its rounding; None where there is no table."""
    return None if settings.functions == "nearest" else _FUNCTIONS.get(name)


_FUNCTIONS: dict[str, Function] = {
    "sigmoid": sigmoid, "tanh": tanh, "erf": erf, "sin": sin, "silu": silu, "gelu": gelu, "sqrt": sqrt,
}  # fmt: skip
