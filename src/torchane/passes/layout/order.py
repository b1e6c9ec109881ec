"""The order in which a tensor's axes are stored, and what moves of axes do to it.

An Order is the tensor's logical axes of more than one entry, slowest first: (2, 0) for x (T, 1, C) stored
as C rows of T. Axes of one entry are nowhere in it, because where they lie changes no byte. A value
stored in an order is a flat row of elements, so any rank-4 shape of the right size is a view of it.
Everything here is arithmetic on tuples; no program is looked at.
"""

import itertools
import math
from collections.abc import Hashable, Iterator, Sequence

Order = tuple[int, ...]
Shape = tuple[int, ...]
Shape4 = tuple[int, int, int, int]

#: As many entries of an axis as every chip takes (GDE M1, chips/m1.toml); from M4 on 65,536.
LONGEST = 16384

#: A run of axes before a reshape and the run that it becomes, of equally many elements.
Block = tuple[Order, Order]


def natural(shape: Shape) -> Order:
    """Row-major, as PyTorch has it."""
    return tuple(axis for axis, size in enumerate(shape) if size != 1)


def sizes(shape: Shape, order: Order) -> Shape:
    return tuple(shape[axis] for axis in order)


def channels_first(shape: Shape) -> Order:
    """The guess for a tensor that nobody has asked anything of: (B, S, C) as (C, B, S), heads as (B, H, D, S)."""
    order = natural(shape)
    if len(order) < 2 or order[-1] != len(shape) - 1:
        return order
    return (order[-1], *order[:-1]) if len(shape) <= 3 else (*order[:-2], order[-1], order[-2])


def transposed(order: Order, perm: Shape) -> Order:
    """The order of transpose(x, perm): the same bytes, its axes under new numbers."""
    new = {old: axis for axis, old in enumerate(perm)}
    return tuple(new[axis] for axis in order)


def reshape_blocks(before: Shape, after: Shape) -> tuple[Block, ...]:
    """Which axes become which, cut as finely as it goes: (B, S, H*D) -> (B*S, H, D) is (0, 1)-(0), (2)-(1, 2)."""
    blocks: list[Block] = []
    old, new = list(natural(before)), list(natural(after))
    while old:
        left, right = [old.pop(0)], [new.pop(0)]
        while (gap := math.prod(sizes(before, tuple(left))) - math.prod(sizes(after, tuple(right)))) != 0:
            if gap < 0:
                left.append(old.pop(0))
            else:
                right.append(new.pop(0))
        blocks.append((tuple(left), tuple(right)))
    return tuple(blocks)


def reshaped(order: Order, blocks: Sequence[Block]) -> Order | None:
    """The order after a reshape that moves no byte; None if some block's axes are not stored in a run."""
    after: list[int] = []
    rest = order
    while rest:
        block = next(block for block in blocks if rest[0] in block[0])
        count = len(block[0])
        if rest[:count] != block[0]:
            return None
        after.extend(block[1])
        rest = rest[count:]
    return tuple(after)


def gathered(order: Order, blocks: Sequence[Block]) -> Iterator[Order]:
    """The orders nearest to `order` in which every block is stored in a run: each block stays together at the
    place of one of its axes, the one stored first to begin with."""
    for anchors in itertools.product(*(sorted(block[0], key=order.index) for block in blocks)):
        block_at = dict(zip(anchors, blocks))
        yield tuple(itertools.chain.from_iterable(block_at[axis][0] for axis in order if axis in block_at))


def runs_between(source: Order, target: Order) -> tuple[tuple[Order, ...], Shape]:
    """The fewest runs of axes that turn one order into the other: the runs as stored, and the permutation of them."""
    follower = dict(itertools.pairwise(target))
    runs: list[list[int]] = []
    for axis in source:
        if runs and follower.get(runs[-1][-1]) == axis:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    first = {run[0]: index for index, run in enumerate(runs)}
    return tuple(map(tuple, runs)), tuple(first[axis] for axis in target if axis in first)


def steps_between(source: Order, target: Order, most: int = 4) -> Iterator[Order]:
    """Orders on the way from `source` to `target`, the last one included, each reached from the one before by a
    transpose of at most `most` axes. Each detour swaps the two neighbouring pieces that leave the fewest runs."""
    while len(runs_between(source, target)[0]) > most:
        count = len(source)
        source = min(
            (
                (*source[:i], *source[j:k], *source[i:j], *source[k:])
                for i, j, k in itertools.combinations(range(count + 1), 3)
            ),
            key=lambda order: len(runs_between(order, target)[0]),
        )
        yield source
    if source != target:
        yield target


def completed(order: Order, wanted: Order, others: Sequence[Order], *, in_front: bool = False) -> Order:
    """`order` with the other axes of `wanted` put in: where another operand has them, else behind the axis that
    precedes them in the tensor (or before everything, `in_front`)."""
    result = list(order)
    for axis in wanted:
        if axis in result:
            continue
        place = 0
        before = [a for a in result if a < axis]
        if before and not in_front:
            place = result.index(max(before)) + 1
        for other in others:
            if axis in other:
                ahead = [a for a in other[: other.index(axis)] if a in result]
                behind = [a for a in other[other.index(axis) + 1 :] if a in result]
                if ahead:
                    place = result.index(ahead[-1]) + 1
                elif behind:
                    place = result.index(behind[0])
        result.insert(place, axis)
    return tuple(result)


def pieces(marks: Sequence[Hashable]) -> int:
    """How many runs of equal marks there are: the axes that no view can do without."""
    return sum(1 for _ in itertools.groupby(marks))


def fit(
    shape: Sequence[int], marks: Sequence[Hashable], templates: Sequence[Shape4] = ()
) -> tuple[Shape4, tuple[Hashable, ...]] | None:
    """A rank-4 view of axes in stored order that keeps axes of different marks apart, and each dimension's mark
    (None where the dimension has one entry). None if more than four runs of marks must stay apart.

    The first template that keeps them apart, else [1, a, 1, 1], [1, a, 1, b], [1, a, b, c], [a, b, c, d], axes
    of equal mark joined from the front until three are left; four stay where a joined one would be longer than a chip takes.
    """
    for template in templates:
        cut = _marked(template, shape, marks)
        if cut is not None:
            return template, cut
    kept = list(zip(shape, marks))
    while len(kept) > 3:
        pairs = [i for i in range(len(kept) - 1) if kept[i][1] == kept[i + 1][1]]
        pair = next((i for i in pairs if kept[i][0] * kept[i + 1][0] <= LONGEST), pairs[0] if pairs and len(kept) > 4 else None)
        if pair is None:
            break
        kept[pair : pair + 2] = [(kept[pair][0] * kept[pair + 1][0], kept[pair][1])]
    if len(kept) > 4:
        return None
    one = (1, None)
    filled = {
        0: [one, one, one, one],
        1: [one, *kept, one, one],
        2: [one, *kept[:1], one, *kept[1:]],
        3: [one, *kept],
        4: kept,
    }[len(kept)]
    return tuple(size for size, _ in filled), tuple(mark for _, mark in filled)  # type: ignore[return-value]


def _marked(template: Shape4, shape: Sequence[int], marks: Sequence[Hashable]) -> tuple[Hashable, ...] | None:
    """Each dimension's mark, if the dimensions of the template cut the row of axes between all runs of marks."""
    runs = [
        (math.prod(size for size, _ in run), mark)
        for mark, run in ((mark, list(run)) for mark, run in itertools.groupby(zip(shape, marks), key=lambda a: a[1]))
    ]
    found: list[Hashable] = []
    left = 1
    for size in template:
        if size == 1:
            found.append(None)
            continue
        if left == 1:
            if not runs:
                return None
            left, mark = runs.pop(0)
        if left % size:
            return None
        left //= size
        found.append(mark)
    return tuple(found) if left == 1 and not runs else None
