"""matmul in physical orders: which operands it takes as they lie, and the product it then computes.

    natural   [b1, b2, M, N] = x, stored (M, K) or (K, M)  @  y, stored (K, N) or (N, K)
    swapped   [b1, b2, N, M] = y^T  @  x^T                 the same numbers, stored N first

An operand is taken as it lies if its order is (batch..., M..., K) or (batch..., K, M...), where M... is any
run of axes that only this operand has: (B, S, C) @ (C, O) takes B as part of M, and heads that share keys
join the queries' rows. Axes of its own that lie among the batch are what the other operand broadcasts over.
Which of K and M comes last is a flag, transpose_x or transpose_y; anything else is a transpose. More rows of the
left operand than a chip takes on an axis are written as a batch of fewer: [1, 1, M, K] as [1, n, M / n, K].
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchane.mil.ir import Op, Var
from torchane.passes.layout.emit import Emitter, Rule
from torchane.passes.layout.order import Order, Shape4, natural, pieces
from torchane.passes.layout.ways import Orders, Way, operands

#: The axis that is summed over. Every other axis is called by its number in the result.
K = -1


@dataclass(frozen=True)
class _Side:
    """One operand as it is read: (batch..., rows..., K), or K before the rows."""

    batch: Order
    rows: Order
    k_last: bool | None
    """None where nothing tells: K has one entry, or there are no rows."""


@dataclass(frozen=True)
class _Product:
    """Both operands as they are read, and whether the result is stored N first."""

    sides: tuple[_Side, _Side]
    batch: Order
    swapped: bool

    @property
    def writes(self) -> Order:
        x, y = self.sides
        return (*self.batch, *y.rows, *x.rows) if self.swapped else (*self.batch, *x.rows, *y.rows)

    @property
    def flags(self) -> tuple[bool, bool]:
        """Whether x and y are taken transposed: as left operand K is wanted last, as right operand first."""
        x, y = self.sides
        if self.swapped:
            return x.k_last is True, y.k_last is False
        return x.k_last is False, y.k_last is True


def _options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Way]:
    """Every way of reading the operands that is worth a thought, with both orders of the result.

    A weight that is taken transposed counts half: the activations decide how the result is stored.
    """
    names, has = _names(op), _has(op)
    shared = tuple(name for name in has[0] if name in has[1] and name != K)
    lies = [None if o is None else tuple(n[axis] for axis in o) for o, n in zip(orders, names)]
    batches = dict.fromkeys([*(tuple(a for a in lie if a in shared) for lie in lies if lie is not None), shared])
    ways: list[list[Order]] = []
    for lie, names_here in zip(lies, has):
        rows = tuple(a for a in (lie or names_here) if a not in shared and a != K)
        k = tuple(a for a in names_here if a == K)
        moved = [way for batch in batches for way in ((*batch, *rows, *k), (*batch, *k, *rows))]
        ways.append(list(dict.fromkeys([*([] if lie is None else [lie]), *moved])))
    for reads in itertools.product(*ways):
        for product in _products(op, reads):
            awkward = sum(
                1 if tensor in weights else 2 for tensor, flag in zip(operands(op), product.flags) if flag
            ) + sum(len(product.batch) - len(side.batch) for side in product.sides)
            yield Way(tuple(_axes(read, n) for read, n in zip(reads, names)), product.writes, awkward)


def _emit(e: Emitter, op: Op, way: Way) -> None:
    """One matmul, its operands viewed as [b1, b2, rows, K] or [b1, b2, K, rows]."""
    tensors, names, has = operands(op), _names(op), _has(op)
    reads = tuple(_named(read, n) for read, n in zip(way.reads, names))
    product = min((p for p in _products(op, reads) if p.writes == way.writes), key=lambda p: sum(p.flags))
    size = {name: tensor.shape[axis] for tensor, n in zip(tensors, names) for axis, name in enumerate(n)}
    size.update((name, tensor.shape[n.index(name)]) for tensor, n, h in zip(tensors, names, has) for name in h)
    views: list[Shape4] = []
    for side, flag, own, is_left in zip(product.sides, product.flags, has, (not product.swapped, product.swapped)):
        rows, k = math.prod(size[name] for name in side.rows), size[K]
        batch = _batch_view(product.batch, has, own, size)
        views.append((*batch, rows, k) if is_left != flag else (*batch, k, rows))
    reading, flags = [*zip(tensors, way.reads)], product.flags
    if product.swapped:
        reading, views, flags = reading[::-1], views[::-1], flags[::-1]
    views = _in_pieces(views, flags, e.longest)
    x, y = (e.read(tensor, read, view) for (tensor, read), view in zip(reading, views))
    result = e.b.matmul(x=x, y=y, transpose_x=flags[0], transpose_y=flags[1], name=op.output.name)
    e.define(op.output, way.writes, result)


def _in_pieces(views: list[Shape4], flags: Sequence[bool], longest: int) -> list[Shape4]:
    """Rows of the left operand that are longer than a chip takes become a batch of equal pieces: the bytes of operands and result stay where
    they are. Rows that no number divides so, or that lie last, stay as they are, and the chip's rules judge them."""
    (outer, batch, rows, k), (outer_y, batch_y, *matrix) = views
    if rows <= longest or flags[0] or (outer, outer_y) != (1, 1):
        return views
    count = next((n for n in range(-(-rows // longest), longest + 1) if rows % n == 0), 1)
    return views if count == 1 else [(batch, count, rows // count, k), (batch_y, 1, *matrix)]


MATMUL = Rule(_options, _emit)


def _names(op: Op) -> tuple[Order, Order]:
    """What each axis of x and of y is called in the product: its number in the result, or K."""
    rank = op.output.rank
    names = []
    for tensor, flag, rows, first in zip(
        operands(op), ("transpose_x", "transpose_y"), (rank - 2, rank - 1), (False, True)
    ):
        last = (K, rows) if first != bool(op.value(flag, False)) else (rows, K)
        names.append((*range(rank - tensor.rank, rank - 2), *last))
    return tuple(names)  # type: ignore[return-value]


def _has(op: Op) -> tuple[Order, Order]:
    """The names of each operand's axes of more than one entry."""
    x, y = (_named(natural(tensor.shape), names) for tensor, names in zip(operands(op), _names(op)))
    return x, y


def _named(order: Order, names: Order) -> Order:
    return tuple(names[axis] for axis in order)


def _axes(named: Order, names: Order) -> Order:
    return tuple(names.index(name) for name in named)


def _products(op: Op, reads: Sequence[Order]) -> Iterator[_Product]:
    """The natural and the swapped product of operands read so; none if they cannot be taken as they lie."""
    has, matrix = _has(op), {op.output.rank - 2, op.output.rank - 1}
    x, y = _side(reads[0], has[1]), _side(reads[1], has[0])
    if x is None or y is None:
        return
    batch = _joined(x.batch, y.batch, has)
    if batch is None or matrix & {*batch}:  # rows of one matrix as a batch of vectors: a transpose is faster
        return
    if pieces([(name in has[0], name in has[1]) for name in batch]) <= 2:
        yield _Product((x, y), batch, swapped=False)
        yield _Product((x, y), batch, swapped=True)


def _side(read: Order, other: Order) -> _Side | None:
    """An operand's axes taken apart; `other` holds the names of the other operand's."""
    if K in read and read[-1] != K:
        at = read.index(K)
        rows = read[at + 1 :]
        return None if any(name in other for name in rows) else _Side(read[:at], rows, False)
    body = read[:-1] if K in read else read
    cut = len(body)
    while cut and body[cut - 1] not in other:
        cut -= 1
    return _Side(body[:cut], body[cut:], True if K in read and cut < len(body) else None)


def _joined(x: Order, y: Order, has: tuple[Order, Order]) -> Order | None:
    """One batch order of both; None if they have their common axes in different orders."""
    if [name for name in x if name in has[1]] != [name for name in y if name in has[0]]:
        return None
    joined: list[int] = []
    rest = list(y)
    for name in x:
        while name in rest and rest[0] != name:
            joined.append(rest.pop(0))
        if name in rest:
            rest.pop(0)
        joined.append(name)
    return (*joined, *rest)


def _batch_view(batch: Order, has: tuple[Order, Order], own: Order, size: dict[int, int]) -> tuple[int, int]:
    """The two leading sizes of an operand: neighbours that the same operands have are one, absent ones are 1."""
    dims = [1, 1]
    for _, run in itertools.groupby(batch, key=lambda name: (name in has[0], name in has[1])):
        dims = [dims[1], math.prod(size[name] if name in own else 1 for name in run)]
    return dims[0], dims[1]
