"""The largest magnitudes of some values of a program, as one small port.

    |v| ──reduce_max, row by row──► [1, 1, 1, 1] ──65504 at most, times a row of ones among zeros──► + ... ──► [1, K, 1, 32]

Everything in it is legal for `portable`, which knows neither abs nor concat nor a reduction over several axes.
"""

from collections.abc import Sequence

import numpy as np

from torchane.abi.numbers import FP16_MAX
from torchane.abi.ranges import port_type
from torchane.chips import Chip
from torchane.mil.build import Builder
from torchane.mil.ir import Var, literal
from torchane.mil.types import FP16
from torchane.passes.rewrite import shape_of

#: Rows of this length at most are reduced at once.
LONGEST = 4096


def write_statistics(b: Builder, values: Sequence[Var], chip: Chip | None = None) -> Var:
    """Adds the ops; the result's row i holds the largest magnitude of values[i]."""
    total: Var | None = None
    shape = port_type(len(values)).shape
    for row, value in enumerate(values):
        place = np.zeros(shape, np.float16)
        place[:, row] = -1.0
        held = b.maximum(x=b.mul(x=largest(b, value, chip), y=-1.0), y=-FP16_MAX)  # times 0, an infinity would be NaN in other rows
        part = b.mul(x=held, y=literal(place, FP16), name=f"largest_{row}")
        total = part if total is None else b.add(x=total, y=part, name="range_statistics")
    assert total is not None, "statistics of nothing"
    return total


def largest(b: Builder, value: Var, chip: Chip | None = None) -> Var:
    """The largest magnitude of a value of rank 4, as [1, 1, 1, 1]."""
    if chip is not None and chip.takes("abs"):
        size = b.abs(x=value)
    else:
        size = b.maximum(x=value, y=b.mul(x=value, y=-1.0))
    while (count := int(np.prod(shape_of(size)))) > 1:
        if shape_of(size)[-1] == 1:
            row = next(n for n in range(min(count, LONGEST), 0, -1) if count % n == 0)
            size = b.reshape(x=size, shape=(1, 1, count // row, row) if row > 1 else (1, 1, 1, count))
        size = b.reduce_max(x=size, axes=(-1,), keep_dims=True)
    return size
