"""Chains: element-wise ops over one domain, as csrc/chain.cpp runs them.

    r = reduce_sum(x, axes=[-1])       rows of x ──► one number per row
    y = mul(x, r)                      rows of x, that number ──► rows of y
    z = reshape(y); w = add(z, b)      the same numbers in order, whatever their shape

The domain has N numbers in row-major order. An op that gives N numbers computes a block at a time; one that
gives N / L numbers computes once per row of L. Shapes may differ as long as axes can be cut into common
pieces: [96, 256] and [8, 12, 256] meet as [8, 12, 256].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torchane import native
from torchane.runtime.twin.arrays import Array, Root, Shape, broadcast_strides

#: Longer rows are not kept whole: several of them would leave the cache.
LONGEST_ROW = 8192


@dataclass(frozen=True, eq=False)
class Micro:
    """One op: its MIL name, its kernel (family and code of native), its operands and its result.

    The families `row` (row -> one number) and `softmax` work on rows of `row` numbers, at least 2.
    """

    op: str
    family: str
    code: str
    inputs: tuple[Array, ...]
    out: Array
    row: int = 0

    @property
    def domain(self) -> Shape:
        """The shape of what it walks over."""
        return self.inputs[0].shape if self.family == "row" else self.out.shape


@dataclass(frozen=True)
class Geometry:
    """The domain cut into `sizes` and `row`; a row is a whole that ops may reduce if `whole_rows`.

    strides: for each micro and each of its operands a stride per size, then one along the row.
    """

    sizes: Shape
    row: int
    whole_rows: bool
    once: tuple[bool, ...]
    strides: tuple[tuple[Shape, ...], ...]
    result_strides: tuple[Shape, ...]


def chain_geometry(micros: Sequence[Micro]) -> Geometry | None:
    """How the ops can share a domain; None if they cannot."""
    total = max(math.prod(micro.domain) for micro in micros)
    row = _row(micros, total)
    if row == 0 or (row is not None and row > LONGEST_ROW and len(micros) > 1):
        return None
    cuts = _cuts(micros, total, row)
    if cuts is None:
        return None
    once = tuple(math.prod(micro.domain) != total for micro in micros)
    in_chain: dict[Root, Shape] = {}
    strides: list[list[Shape]] = []
    for micro, per_row in zip(micros, once, strict=True):
        scale = row if per_row and row else 1
        seen = [_cut_strides(broadcast_strides(array.shape, micro.domain), micro.domain, scale, cuts) for array in micro.inputs]
        if any(in_chain.get(array.root, found) != found for array, found in zip(micro.inputs, seen, strict=True)):
            return None
        strides.append(seen)
        gives_one = per_row or micro.family == "row"
        in_chain[micro.out.root] = tuple((cut // row if cut >= row else 0) if gives_one and row else cut for cut in cuts[:-1])
    return _joined(cuts, row, once, strides, [in_chain[micro.out.root] for micro in micros])


def _row(micros: Sequence[Micro], total: int) -> int | None:
    """The length of rows; None where every op walks over the whole domain, 0 where the ops disagree."""
    rows = {micro.row for micro in micros if micro.row}
    rows |= {total // math.prod(micro.domain) for micro in micros if math.prod(micro.domain) != total}
    if any(math.prod(micro.domain) != total and micro.row for micro in micros) or len(rows) > 1:
        return 0
    return rows.pop() if rows else None


def _cuts(micros: Sequence[Micro], total: int, row: int | None) -> list[int] | None:
    """The places at which some shape cuts the domain, as numbers of elements below, ascending; 1 and total
    included. None if one does not divide the next."""
    cuts = {1, total, row or 1}
    for micro in micros:
        below = 1 if math.prod(micro.domain) == total else row or 1
        for size in reversed(micro.domain):
            below *= size
            cuts.add(below)
    ordered = sorted(cuts)
    if any(larger % smaller for smaller, larger in pairwise(ordered)):
        return None
    return ordered


def _cut_strides(strides: Shape, shape: Shape, scale: int, cuts: list[int]) -> Shape:
    """The stride at each cut but the last, from the strides along the axes of `shape`; innermost first."""
    found = dict.fromkeys(cuts[:-1], 0)
    below = scale
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        for cut in cuts:
            if below <= cut < below * size:
                found[cut] = stride * (cut // below)
        below *= size
    return tuple(found.values())


def _joined(
    cuts: list[int], row: int | None, once: tuple[bool, ...], strides: list[list[Shape]], results: list[Shape]
) -> Geometry | None:
    """Neighbouring pieces that every operand walks alike become one; a row must become one piece."""
    everything = [operand for operands in strides for operand in operands] + results
    starts: list[int] = []
    for index, cut in enumerate(cuts[:-1]):
        joins = bool(starts) and cut != row
        joins = joins and all(s[index] == s[starts[-1]] * (cut // cuts[starts[-1]]) for s in everything)
        if not joins:
            if starts and row and cut < row:
                return None
            starts.append(index)
    ends = [*(cuts[index] for index in starts[1:]), cuts[-1]]
    sizes = [end // cuts[start] for start, end in zip(starts, ends)] or [1]

    def along(found: Shape) -> Shape:
        """Outermost first, the row last."""
        return tuple(found[index] for index in reversed(starts)) or (0,)

    return Geometry(
        sizes=tuple(reversed(sizes[1:])),
        row=sizes[0],
        whole_rows=row is not None,
        once=once,
        strides=tuple(tuple(along(operand) for operand in operands) for operands in strides),
        result_strides=tuple(along(found) for found in results),
    )


def emit_chain(tape: Any, ops: list[str], micros: Sequence[Micro], geometry: Geometry, stored: set[Root]) -> None:
    """Writes the chain to a tape. Results in `stored` go to memory, the others live in registers."""
    operands: dict[tuple[tuple[int, int], Shape], int] = {}
    values: dict[Root, int] = {}
    per_row: set[Root] = set()
    last_use = {array.root: index for index, micro in enumerate(micros) for array in micro.inputs}
    free: list[int] = []
    registers = 0
    encoded = []

    def operand(array: Array, strides: Shape) -> int:
        return operands.setdefault((array.place, strides), len(operands))

    for index, micro in enumerate(micros):
        inputs, scalars = [], []
        for array, strides in zip(micro.inputs, geometry.strides[index], strict=True):
            own = values.get(array.root)
            inputs.append(operand(array, strides) if own is None else own)
            scalars.append(array.root in per_row or (own is None and strides[-1] == 0))
        for root in {array.root for array in micro.inputs}:
            if values.get(root, 0) < 0 and last_use[root] == index:
                free.append(values[root])
        if micro.out.root in stored:
            values[micro.out.root] = operand(micro.out, geometry.result_strides[index])
        elif free:
            values[micro.out.root] = free.pop()
        else:
            registers += 1
            values[micro.out.root] = -registers
        once = geometry.once[index]
        if once or micro.family == "row":
            per_row.add(micro.out.root)
        if micro.out.root not in last_use and micro.out.root not in stored:
            free.append(values[micro.out.root])
        encoded.append(_encoded(micro, once or geometry.row == 1, scalars, values[micro.out.root], inputs))
    tape.chain(
        ops,
        sizes=geometry.sizes,
        row=geometry.row,
        whole_rows=geometry.whole_rows,
        registers=registers,
        operands=[(place, strides[:-1], strides[-1]) for place, strides in operands],
        micros=encoded,
    )


def _encoded(micro: Micro, single: bool, scalars: list[bool], out: int, inputs: list[int]) -> tuple[int, ...]:
    """(family, op, form, once, d, a, b) as csrc/steps.h has them. `single`: one number, so every operand is a vector of 1."""
    codes = {"unary": native.UNARY, "binary": native.BINARY, "row": native.REDUCTION, "softmax": {micro.code: 0}, "table": {micro.code: 0}}
    form = "vector_vector"
    if len(inputs) == 2 and not single and scalars != [False, False]:
        form = "vector_scalar" if scalars[1] else "scalar_vector"
    b = inputs[1] if len(inputs) == 2 else inputs[0]
    is_once = single and micro.family not in ("row", "softmax")
    return (native.FAMILY[micro.family], codes[micro.family][micro.code], native.FORM[form], is_once, out, inputs[0], b)
