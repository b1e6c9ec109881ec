"""Sums of products in the engine's fixed point: what convolution and matmul are made of.

    e(v) = max(floor(log2 |v|), -14), U = 2^-16
    a * b is 0 if e(a) + e(b) < -16, else it is rounded to a multiple of U, halves away from zero
    sums are exact; one that reaches +-32768 at any moment is an infinity from then on

Everything is counted in units of U, as float64 integers below 2^53; +-inf stands for a sum that has left the
range. Products are added in ascending order of the inner index: the engine's order is not known, and it
matters only for which sums leave the range on their way.
Evidence: every output of two captures; 751K, notes/numerics.md, H11 and H12, on M4 and M6.
"""

import numpy as np

from torchane.mil.engine.numbers import exponents
from torchane.mil.engine.settings import Products

#: Entries of a block of products that are held at once.
BLOCK = 1 << 18


def sums(a: np.ndarray, b: np.ndarray, rule: Products, start: np.ndarray | float = 0.0) -> np.ndarray:
    """a (..., M, K) times b (..., K, N) -> (..., M, N): decoded fp16 values to sums, as numbers.

    start: what the sums begin with, as numbers that broadcast to the result (a bias).
    """
    shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    if rule.subnormals == "zero":
        a, b = (np.where(np.abs(v) < 2.0**-14, 0.0, v) for v in (a, b))
    if rule.fraction_bits is None:
        return np.broadcast_to(start, shape) + np.matmul(a, b)
    unit = 2.0**rule.fraction_bits
    first = np.broadcast_to(nearest_integers(np.asarray(start) * unit), shape)
    result = np.empty(shape)
    left, right = (np.broadcast_to(v, (*shape[:-2], *v.shape[-2:])) for v in (a, b))
    for batch in np.ndindex(*shape[:-2]):
        result[batch] = _one(left[batch], right[batch], first[batch], rule, unit)
    return result / unit


def nearest_integers(values: np.ndarray) -> np.ndarray:
    """Halves away from zero. Exact for products of two fp16 numbers times a power of two."""
    return np.trunc(values + np.copysign(0.5, values))


def _one(a: np.ndarray, b: np.ndarray, start: np.ndarray, rule: Products, unit: float) -> np.ndarray:
    """a (M, K), b (K, N), start (M, N), in units -> (M, N) in units."""
    limit = rule.ceiling * unit
    powers_a, powers_b = _powers(a, rule), _powers(b, rule)
    scaled = a * unit
    total = start + 0.0  # a sum never is -0
    depth = max(1, BLOCK // max(1, total.size))
    for k in range(0, a.shape[1], depth):
        own = slice(k, k + depth)
        total += _products(scaled[:, None, own], b.T[None, :, own], powers_a[:, None, own], powers_b.T[None, :, own], rule).sum(-1)
    # No partial sum can leave the range where the sum of all sizes stays within it.
    sizes = np.abs(start) + np.abs(scaled) @ np.abs(b) + a.shape[1]
    rows, columns = np.nonzero(sizes >= limit)
    for begin in range(0, len(rows), max(1, BLOCK // max(1, a.shape[1]))):
        r, c = (index[begin : begin + max(1, BLOCK // max(1, a.shape[1]))] for index in (rows, columns))
        parts = _products(scaled[r], b.T[c], powers_a[r], powers_b.T[c], rule)
        total[r, c] = _in_turn(start[r, c], parts, limit, rule)
    return total


def _powers(values: np.ndarray, rule: Products) -> np.ndarray:
    if rule.lowest_exponent is None:
        return np.ldexp(1.0, np.where(values == 0, 0, np.frexp(values)[1] - 1))
    return np.ldexp(1.0, exponents(values))


def _products(a: np.ndarray, b: np.ndarray, powers_a: np.ndarray, powers_b: np.ndarray, rule: Products) -> np.ndarray:
    products = nearest_integers(a * b)
    if rule.lowest_product is not None:
        products *= powers_a * powers_b >= 2.0**rule.lowest_product
    return products


def _in_turn(start: np.ndarray, parts: np.ndarray, limit: float, rule: Products) -> np.ndarray:
    """start (R,) and parts (R, K) in units -> (R,): one after the other, with what happens at the limit."""
    if rule.overflow == "wrap":
        return (start + parts.sum(-1) + limit) % (2 * limit) - limit
    running = start
    if rule.overflow == "saturate":
        for k in range(parts.shape[1]):
            running = np.clip(running + parts[:, k], -limit, limit - 1)
        return running
    gone = np.where(np.abs(running) >= limit, np.sign(running), 0.0)
    path = np.cumsum(np.concatenate([start[:, None], parts], axis=1), axis=1)
    beyond = np.abs(path) >= limit
    first = beyond.argmax(axis=1)
    gone = np.where(beyond.any(axis=1), np.sign(np.take_along_axis(path, first[:, None], 1)[:, 0]), gone)
    return np.where(gone != 0, np.copysign(np.inf, gone), path[:, -1])
