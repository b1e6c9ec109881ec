"""Which numbers of a step a thread computes: those that it computed in the step before, where that can be.

    matmul (C, O) (O, S)    a thread writes columns of S     ─┐
    chain over (C, S)       the same columns of each row     ─┤  each thread reads from its own cache what it wrote there: from another's it
    matmul (D, C) (C, S)    packs these columns              ─┘  takes three times as long

What is shared is a period: of each so many numbers a thread has the same piece (`columns` of csrc/steps.h). Nothing that is computed depends on it.
"""

import math
from collections import Counter
from collections.abc import Sequence

from torchane.runtime.twin.arrays import Root, TapeStep
from torchane.runtime.twin.schedule import Call, Chain

#: From so many products on a thread takes whole ones (csrc/matmul.cpp).
WHOLE_PRODUCTS = 4
#: Pieces of fewer numbers cost more than they save.
LEAST_COLUMNS = 256


def share_columns(steps: Sequence[TapeStep]) -> None:
    """Sets the period of each chain, from those of what it reads. steps: in order."""
    periods: dict[Root, int] = {}
    for step in steps:
        if isinstance(step, Chain):
            step.columns = _of_chain(step, periods)
            period = step.columns
        else:
            period = _of_product(step) if isinstance(step, Call) and step.method == "matmul" else 0
        periods |= {array.root: period or array.root.size for array in step.writes}


def _of_chain(chain: Chain, periods: dict[Root, int]) -> int:
    """That of most of what it reads; the longest last axis where nothing is known of that."""
    total = max(math.prod(micro.domain) for micro in chain.micros)
    known = Counter(periods[array.root] for array in chain.reads if array.root in periods and array.size == total)
    if known:
        return known.most_common(1)[0][0]
    longest = max(micro.domain[-1] if micro.domain else 1 for micro in chain.micros)
    return longest if longest >= LEAST_COLUMNS else total


def _of_product(product: Call) -> int:
    """Several products are cut between them, one along its longer side."""
    m, n = product.values["m"], product.values["n"]
    return n if math.prod(product.values["batch"]) < WHOLE_PRODUCTS and n > m and n >= LEAST_COLUMNS else product.out.root.size
