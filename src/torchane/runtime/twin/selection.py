"""Products with a constant that has one power of two, from 1 on, in a row at most: what they do is move rows or columns, and the twin moves them.

    (6, 4)  . 1 . .  ──►  (0, 1, 2, 1): rows 0 and 1 are rows 1 and 2        cuts, joins, halves that change places, gaps between numbers
            . . 1 .
            . . . .  ──►  (2, 0, 1, 0): zeros
            ...
The bits are the product's own; csrc/selection.cpp multiplies after all where a number is infinite or none.
"""

from typing import Any

import numpy as np

#: Pieces shorter than this on average are slower to move than to multiply.
SHORTEST = 8
#: (first row of the result, first row of the operand, number of rows, factor)
Piece = tuple[int, int, int, float]


def selection(constant: np.ndarray | None, is_left: bool, sizes: tuple[int, int, int], transposed: tuple[bool, bool]) -> dict[str, Any] | None:
    """`is_left` and `pieces` of the tape's select(), if a product (m, k) (k, n) with that constant as its left or right operand is one; None otherwise."""
    m, n, k = sizes
    outer, lies = (m, not transposed[0]) if is_left else (n, transposed[1])  # a row for each of the result, in memory
    is_other_turned = transposed[1] if is_left else transposed[0]
    if constant is None or constant.size != outer * k or is_other_turned:
        return None
    pieces = pieces_of(constant.reshape(outer, k) if lies else constant.reshape(k, outer).T)
    if pieces is None or (n if is_left else outer / len(pieces)) < SHORTEST:
        return None
    return {"is_left": is_left, "pieces": pieces}


def pieces_of(rows: np.ndarray) -> list[Piece] | None:
    """The pieces of a matrix with a row for each of the result; None where a row has more than one number, or one that is no power of
    two from 1 on: a product with a smaller one tells numbers that become 0 in rounding from 0, by the sign of the 0."""
    if not rows.size or np.count_nonzero(rows[0]) > 1 or np.count_nonzero(rows) > len(rows):  # most constants are neither, and are seen at once
        return None
    is_there = rows != 0
    if (is_there.sum(1) > 1).any():
        return None
    places = np.where(is_there.any(1), is_there.argmax(1), 0)
    factors = rows[np.arange(len(rows)), places].astype(np.float64)
    fractions, exponents = np.frexp(factors)
    if not (np.isin(np.abs(fractions), (0.0, 0.5)) & ((exponents > 0) | (factors == 0))).all():
        return None
    follows = (factors[1:] == factors[:-1]) & ((places[1:] == places[:-1] + 1) | (factors[1:] == 0))
    starts = [0, *(np.flatnonzero(~follows) + 1).tolist()]
    ends = [*starts[1:], len(rows)]
    return [(start, int(places[start]), end - start, float(factors[start])) for start, end in zip(starts, ends, strict=True)]
