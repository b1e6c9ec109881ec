"""What the engine's arithmetic does to the tensors of a program: counts, without computing product by product.

A product a * b is dropped if e(a) + e(b) < -16, subnormal numbers counting as -14, and rounds to 0 if it is below
2^-17. So per index of the sum the exponents of both sides are counted, and the lost products are the pairs of counts
that lie below. (A product of a subnormal number between 2^-18 and 2^-17 is lost too and not counted.)
Reference: mil/engine/products.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from torchane.mil.engine.numbers import LOWEST_EXPONENT, decoded
from torchane.mil.engine.settings import Products
from torchane.mil.ir import Arg, Literal, Op, Var

#: A sum of this size or more is called near the end of the range: two doublings from it.
NEAR = 8192.0
#: Exponents of fp16 numbers, subnormal ones their own: -24 to 16.
SMALLEST, EXPONENTS = -24, 41
#: A product whose exponents, each its own, add up to this or less is below 2^-17.
VANISHES = -19
RULE = Products()


@dataclass(frozen=True)
class Magnitudes:
    """Of one tensor. smallest: the smallest that is not zero, 0 where all are; infinities count as 65536."""

    count: int
    zeros: int
    largest: float
    smallest: float


@dataclass(frozen=True)
class ProductCounts:
    """Of one matmul or conv. products: pairs of numbers that are not zero; dropped: those whose product is lost;
    near and overflowed: sums from NEAR on, and those that left the range."""

    products: int
    dropped: int
    sums: int
    near: int
    overflowed: int

    @property
    def dropped_share(self) -> float:
        return self.dropped / self.products if self.products else 0.0


def magnitudes(array: np.ndarray) -> Magnitudes:
    sizes = np.abs(decoded(array))
    present = sizes[sizes > 0]
    return Magnitudes(sizes.size, sizes.size - present.size, float(sizes.max(initial=0)), float(present.min()) if present.size else 0.0)


def product_counts(op: Op, values: Mapping[Var, np.ndarray]) -> ProductCounts:
    """op: a matmul or a 1x1 conv whose operands are in values or constant."""
    if op.kind.name == "conv":
        x, weight = (_array(op.args[key], values) for key in ("x", "weight"))
        a = weight.reshape(weight.shape[0], -1)
        b = x.reshape(*x.shape[:2], -1)
    else:
        a, b = (_array(op.args[key], values) for key in "xy")
        a = a.swapaxes(-1, -2) if _flag(op, "transpose_x") else a
        b = b.swapaxes(-1, -2) if _flag(op, "transpose_y") else b
    products, dropped = _dropped(a, b)
    result = np.abs(decoded(values[op.output]))
    return ProductCounts(products, dropped, result.size, int((result >= NEAR).sum()), int((result >= 65536.0).sum()))


def _array(arg: Arg, values: Mapping[Var, np.ndarray]) -> np.ndarray:
    return np.asarray(arg.value) if isinstance(arg, Literal) else values[arg]


def _flag(op: Op, key: str) -> bool:
    flag = op.args.get(key)
    return bool(flag.python()) if isinstance(flag, Literal) else False


def _dropped(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """a (..., M, K), b (..., K, N) -> products of two numbers that are not zero, and how many of them are lost."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left = np.broadcast_to(_by_exponent(a.swapaxes(-1, -2)), (*batch, a.shape[-1], EXPONENTS))
    right = np.broadcast_to(_by_exponent(b), (*batch, b.shape[-2], EXPONENTS))
    own = np.arange(EXPONENTS) + SMALLEST
    held = np.maximum(own, LOWEST_EXPONENT)
    lost = (np.add.outer(held, held) < RULE.lowest_product) | (np.add.outer(own, own) <= VANISHES)
    pairs = left.reshape(-1, EXPONENTS).T @ right.reshape(-1, EXPONENTS)
    return int(pairs.sum()), int(pairs[lost].sum())


def _by_exponent(array: np.ndarray) -> np.ndarray:
    """(..., K, M) -> (..., K, EXPONENTS): how many of the M numbers have each exponent; zeros are left out."""
    values = decoded(array).reshape(-1, array.shape[-1])
    rows = np.broadcast_to(np.arange(len(values))[:, None], values.shape)[values != 0]
    codes = (np.frexp(values)[1] - 1 - SMALLEST)[values != 0]
    counts = np.bincount(rows * EXPONENTS + codes, minlength=len(values) * EXPONENTS)
    return counts.reshape(*array.shape[:-1], EXPONENTS).astype(np.float64)
