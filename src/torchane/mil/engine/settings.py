"""The assumptions of the engine's arithmetic that sources differ on, or that a test leaves out on purpose.

The defaults are what reproduces every output of the captures and what the M4 and M6 were measured to do.
A chip's data file says which apply to it: `chips.load("m1").arithmetic`.
"""

from dataclasses import dataclass, field
from typing import Literal

from torchane.mil.engine.numbers import LOWEST_EXPONENT


@dataclass(frozen=True)
class Products:
    """How convolution and matmul multiply and add.

    fraction_bits: of the fixed-point products and sums; None leaves products exact, in any size.
    lowest_product: a product whose operands' exponents add up to less is 0.
    lowest_exponent: what subnormal operands count as; None lets each have its own.
    subnormals: "kept", or operands below 2^-14 count as "zero" (GDE on M1).
    ceiling: sums of this size or more, at any moment, are out of range.
    overflow: "infinity", and it stays (751K on M4 and M6); "saturate" holds the last value in range (GDE's
        reading of M1, 32752 at most); "wrap" as a 32-bit integer would (nobody reports it).
    """

    fraction_bits: int | None = 16
    lowest_product: int | None = -16
    lowest_exponent: int | None = LOWEST_EXPONENT
    subnormals: Literal["kept", "zero"] = "kept"
    ceiling: float = 32768.0
    overflow: Literal["infinity", "saturate", "wrap"] = "infinity"


@dataclass(frozen=True)
class Exponential:
    """How e^x is computed: 2^u from a table, u = x * multiplier.

    multiplier: fp16(log2 e). input_is_half: u is rounded to fp16. table_is_half: the 33 values are fp16.
    fraction_bits: kept of an interpolated value, halves up; None keeps all. result_is_half: before softmax adds.
    """

    multiplier: float = 1.4423828125
    input_is_half: bool = True
    table_is_half: bool = True
    fraction_bits: int | None = 19
    result_is_half: bool = True


@dataclass(frozen=True)
class Softmax:
    """row_sum: "blocks" of 8 and 32 as captured, "in turn" from left to right, or "exact".
    reciprocal: "observed" where a capture shows it and "nearest" elsewhere, "nearest" fp16, or "division" of
    each entry by the sum."""

    row_sum: Literal["blocks", "in turn", "exact"] = "blocks"
    reciprocal: Literal["observed", "nearest", "division"] = "observed"


@dataclass(frozen=True)
class Settings:
    """All of it. ties: how results that lie halfway become fp16, "away" from zero or to "even" (GDE on M1).
    functions: by their 33-point "tables", or "nearest": the exact value rounded once.
    silu: h * sigmoid(h) is "fused" to one table where nothing else reads the sigmoid, or computed in two "parts"."""

    products: Products = field(default_factory=Products)
    exponential: Exponential = field(default_factory=Exponential)
    softmax: Softmax = field(default_factory=Softmax)
    ties: Literal["away", "even"] = "away"
    functions: Literal["tables", "nearest"] = "tables"
    silu: Literal["fused", "parts"] = "fused"
