"""Write joins of slices as one product with a constant matrix of zeros and ones.

    a = slice_by_size(x, [.., 0])         # the first half of each row
    b = mul(slice_by_size(x, [.., n/2]), -1)
    y = concat(b, a, -1)          ->      y = matmul(x, R)          # RoPE's rotation, R constant
    y = add(add(v, pad(a, before)), pad(b, after))    ->    y = add(v, matmul(x, R^T))     # and its gradient
    y = concat(p, q, 1)           ->      y = matmul(P, p) + matmul(Q, q)
No chip is sure to take concat or pad. Slices, negations, pads, joins and sums of parts that do not overlap,
all along one axis, are followed entry by entry to the values that they start from; what reads the join reads
one product for each of those. A join that gives one value back whole is that value; one that gives a run
of it is a slice. A slice that nothing joins stays a slice. What nobody reads any more is left out.

Channels of images that move in blocks of g, 64 joined with 32 in blocks of 32, take a matrix of blocks, 3 x 2 instead of 96 x 64:

    [N, C, H, W]  as  [N, g, C / g, H * W]

Same bits, but for the sign of zeros: each result is one element times +-1, plus zeros (a chip whose products keep 16 fraction bits drops
entries below 2^-17 here, as in every matmul). Raises CompileError for a matrix of more than `MAX_ELEMENTS`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchane.chips import Chip
from torchane.errors import CompileError
from torchane.mil.build import Builder
from torchane.mil.ir import Literal, Op, Program, Var, literal
from torchane.mil.types import TensorType
from torchane.passes.rewrite import Rule, rewrite, scalar, shape_of

#: 32 MiB of fp16: a join of 2,048 and 2,048 channels.
MAX_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class _Selection:
    """Where the entries of a value along `axis` come from: entry i is sign[i] * sources[which[i]] at index[i],
    or nothing where which[i] is -1; there `constant`, in the value's shape, may hold what literal parts give.

    A selection that nothing joined is a slice with a sign, whose op stays as it is.
    """

    axis: int
    sources: tuple[Var, ...]
    which: np.ndarray
    index: np.ndarray
    sign: np.ndarray
    constant: np.ndarray | None = None
    is_joined: bool = False

    def negative(self) -> "_Selection":
        constant = None if self.constant is None else -self.constant
        return _Selection(self.axis, self.sources, self.which, self.index, -self.sign, constant, self.is_joined)


class _Finder:
    """What each value of a program is known to be a selection of."""

    def __init__(self, program: Program):
        self.found: dict[Var, _Selection] = {}
        self.negated: dict[Var, Var] = {}
        #: A sum of a value and of joins, the joins taken together.
        self.sums: dict[Var, tuple[Var, _Selection]] = {}
        for op in program.ops:
            if len(op.outputs) == 1 and isinstance(op.output.type, TensorType) and op.output.type.is_fixed:
                selection = self._of(op)
                if selection is not None:
                    self.found[op.output] = selection

    def _of(self, op: Op) -> _Selection | None:
        kind, x = op.kind.name, op.args.get("x")
        if kind == "concat":
            return self._of_concat(op)
        if kind == "add":
            return self._of_sum(op)
        if kind == "sub" and scalar(x) == 0.0:
            return self._of_negative(op, op.args["y"])
        if kind == "mul" and scalar(op.args["y"]) == -1.0:
            return self._of_negative(op, x)
        if kind == "slice_by_size" and isinstance(x, Var) and isinstance(op.args["begin"], Literal):
            return self._of_slice(op, x)
        if kind == "pad" and op.value("mode", "constant") == "constant" and isinstance(x, Var):
            return self._of_pad(op, x)
        return None

    def _along(self, var: Var, axis: int) -> _Selection:
        """The value as a selection along `axis`: what it is known to be, else itself, whole."""
        selection = self.found.get(var)
        if selection is not None and selection.axis == axis:
            return selection
        size = shape_of(var)[axis]
        ones = np.ones(size, np.int8)
        sign, source = (-ones, self.negated[var]) if var in self.negated else (ones, var)
        return _Selection(axis, (source,), np.zeros(size, np.int64), np.arange(size), sign)

    def _of_negative(self, op: Op, x: object) -> _Selection | None:
        if not isinstance(x, Var) or x.shape != op.output.shape:
            return None
        if x in self.found:
            return self.found[x].negative()
        self.negated[op.output] = x
        return None

    def _of_slice(self, op: Op, x: Var) -> _Selection | None:
        axis = _only_axis(op, x)
        if axis is None:
            return None
        start = op.value("begin")[axis]
        run = slice(start, start + op.output.shape[axis])
        base = self._along(x, axis)
        constant = None if base.constant is None else base.constant[(slice(None),) * axis + (run,)]
        return _Selection(axis, base.sources, base.which[run], base.index[run], base.sign[run], constant, base.is_joined)

    def _of_concat(self, op: Op) -> _Selection:
        values = op.args["values"]
        axis = op.value("axis") % op.output.rank
        entries = np.arange(op.output.shape[axis])
        if op.value("interleave", False):
            places = [entries[first :: len(values)] for first in range(len(values))]
        else:
            places = np.split(entries, np.cumsum([value.shape[axis] for value in values])[:-1])
        return self._placed(op.output, axis, list(zip(values, places)), 0.0)

    def _of_pad(self, op: Op, x: Var) -> _Selection | None:
        axis = _only_axis(op, x)
        if axis is None:
            return None
        pad = op.value("pad")
        before = pad[2 * (axis - x.rank) + len(pad)]
        place = np.arange(before, before + x.shape[axis])
        return self._placed(op.output, axis, [(x, place)], float(op.value("constant_val", 0.0)))

    def _placed(self, output: Var, axis: int, parts: list[tuple[Var | Literal, np.ndarray]], fill: float) -> _Selection:
        """The parts, each at its places along `axis`; what lies between them holds `fill`."""
        sources: dict[Var, int] = {}
        which = np.full(output.shape[axis], -1)
        index = np.zeros(output.shape[axis], np.int64)
        sign = np.ones(output.shape[axis], np.int8)
        literals: list[tuple[np.ndarray, object]] = []
        for part, place in parts:
            if isinstance(part, Literal):
                literals.append((place, part.value))
                continue
            base = self._along(part, axis)
            numbers = np.array([*(sources.setdefault(var, len(sources)) for var in base.sources), -1])
            which[place], index[place], sign[place] = numbers[base.which], base.index, base.sign
            literals.append((place, 0.0 if base.constant is None else base.constant))
        constant = None
        if fill or any(np.any(value) for _, value in literals):
            constant = np.full(output.shape, fill)
            for place, value in literals:
                constant[(slice(None),) * axis + (place,)] = value
        return _Selection(axis, tuple(sources), which, index, sign, constant, is_joined=True)

    def _of_sum(self, op: Op) -> _Selection | None:
        """Joins that do not overlap are one join, directly or one after another on top of another value."""
        x, y = op.args["x"], op.args["y"]
        if not (isinstance(x, Var) and isinstance(y, Var) and x.shape == y.shape):
            return None
        if self._is_join(x) and self._is_join(y):
            return _together(self.found[x], self.found[y])
        for join, value in ((x, y), (y, x)):
            if self._is_join(join):
                rest, before = self.sums.get(value, (value, None))
                both = self.found[join] if before is None else _together(before, self.found[join])
                if both is not None:
                    self.sums[op.output] = (rest, both)
        return None

    def _is_join(self, var: Var) -> bool:
        return var in self.found and self.found[var].is_joined


def _together(x: _Selection, y: _Selection) -> _Selection | None:
    """The sum of two joins in which no entry of the result comes from two places; None if one does."""
    of_y = y.which >= 0
    if x.axis != y.axis or x.constant is not None or y.constant is not None or (of_y & (x.which >= 0)).any():
        return None
    sources = tuple(dict.fromkeys(x.sources + y.sources))
    numbers = np.array([*(sources.index(var) for var in y.sources), -1])
    which, index, sign = x.which.copy(), x.index.copy(), x.sign.copy()
    which[of_y], index[of_y], sign[of_y] = numbers[y.which][of_y], y.index[of_y], y.sign[of_y]
    return _Selection(x.axis, sources, which, index, sign, None, is_joined=True)


def lower_selections(program: Program, chip: Chip | None = None) -> Program:
    """Every join, unless the chip takes concat and pad."""
    if chip is not None and chip.takes("concat") and chip.takes("pad"):
        return program
    finder = _Finder(program)
    joins = {var: selection for var, selection in finder.found.items() if selection.is_joined}
    live = set(program.outputs)
    for op in reversed(program.ops):
        if op.outputs and live.isdisjoint(op.outputs):
            continue
        if op.outputs and op.output in joins:
            live.update(joins[op.output].sources)
        elif op.outputs and op.output in finder.sums:
            rest, join = finder.sums[op.output]
            live.update((rest, *join.sources))
        else:
            live.update(op.inputs)
    same: dict[Var, Var | Literal] = {}

    def build(b: Builder, op: Op) -> Var | Literal | None:
        join = joins.get(op.output)
        if join is not None:
            sources = [same.get(var, var) for var in join.sources]
            result = _built(b, op.output, join, sources)
            if isinstance(result, Literal) or result in sources:
                same[op.output] = result
            return result
        if op.output in finder.sums:
            rest, join = finder.sums[op.output]
            return b.add(x=same.get(rest, rest), y=_built(b, op.output, join, [same.get(var, var) for var in join.sources]))
        return None

    kept = program.with_(ops=tuple(op for op in program.ops if not op.outputs or not live.isdisjoint(op.outputs)))
    rules: dict[str, Rule] = dict.fromkeys({"concat", "pad", "add", "sub", "mul", "slice_by_size"}, build)
    return rewrite(kept, rules)


def _only_axis(op: Op, x: Var) -> int | None:
    """The one axis on which x and the result differ in size."""
    axes = [axis for axis, size in enumerate(op.output.shape) if size != x.shape[axis]]
    return axes[0] if len(axes) == 1 else None


def _built(b: Builder, output: Var, selection: _Selection, sources: Sequence[Var | Literal]) -> Var | Literal:
    result: Var | Literal | None = None
    if selection.constant is not None or (selection.which < 0).all():
        zeros = np.zeros(output.shape) if selection.constant is None else selection.constant
        result = literal(zeros, output.type.dtype)
    for number, source in enumerate(sources):
        entries = np.flatnonzero(selection.which == number)
        if entries.size:
            part = _product(b, source, selection, entries)
            result = part if result is None else b.add(x=part, y=result)
    assert result is not None
    return result


def _product(b: Builder, x: Var | Literal, selection: _Selection, entries: np.ndarray) -> Var | Literal:
    """What x gives to the `entries` of the result; x itself, or a slice of it, where that is all there is to do."""
    axis, columns = selection.axis, selection.which.size
    rows, start = shape_of(x)[axis], int(selection.index[0])
    run = np.arange(start, start + columns)
    if entries.size == columns and (selection.sign > 0).all() and np.array_equal(selection.index, run):
        begin = [start if a == axis else 0 for a in range(x.rank)]
        size = [columns if a == axis else n for a, n in enumerate(shape_of(x))]
        return x if columns == rows else b.slice_by_size(x=x, begin=begin, size=size)
    blocks = _block_size(selection, entries, rows) if axis == x.rank - 3 else 1
    if blocks > 1:
        return _product_of_blocks(b, x, selection, entries, blocks)
    if rows * columns > MAX_ELEMENTS:
        raise CompileError(
            f"{x.name if isinstance(x, Var) else 'a constant'} {x.type}: joining along axis {axis} to {columns} entries needs a constant matrix of {rows} x "
            f"{columns}, and the most is {MAX_ELEMENTS} entries."
        )
    dtype = x.type.dtype
    if axis == x.rank - 1 and x.rank > 1:
        matrix = np.zeros((rows, columns), dtype.numpy)
        matrix[selection.index[entries], entries] = selection.sign[entries]
        return b.matmul(x=x, y=literal(matrix, dtype), transpose_x=False, transpose_y=False)
    turned = np.zeros((columns, rows), dtype.numpy)
    turned[entries, selection.index[entries]] = selection.sign[entries]
    left = literal(turned, dtype)
    if axis == x.rank - 2:
        return b.matmul(x=left, y=x, transpose_x=False, transpose_y=False)
    # the axes behind the selected one are one row to it
    rest = int(np.prod(shape_of(x)[axis + 1 :], dtype=np.int64))
    flat = b.reshape(x=x, shape=(*shape_of(x)[:axis], rows, rest))
    after = (*shape_of(x)[:axis], columns, *shape_of(x)[axis + 1 :])
    return b.reshape(x=b.matmul(x=left, y=flat, transpose_x=False, transpose_y=False), shape=after)


def _block_size(selection: _Selection, entries: np.ndarray, rows: int) -> int:
    """How many neighbouring entries move together, from places to places that are multiples of it."""
    columns = selection.which.size
    source = np.full(columns, -1)
    source[entries] = selection.index[entries]
    size = math.gcd(rows, columns)
    while size > 1:
        first = source.reshape(-1, size)[:, :1]
        whole = np.where(first < 0, -1, first + np.arange(size))
        signs = selection.sign.reshape(-1, size)
        if np.array_equal(source.reshape(-1, size), whole) and not (first[first >= 0] % size).any() and (signs == signs[:, :1]).all():
            break
        size = max(d for d in range(1, size) if size % d == 0)
    return size


def _product_of_blocks(b: Builder, x: Var | Literal, selection: _Selection, entries: np.ndarray, size: int) -> Var:
    """`_product` along the third axis from the end, in blocks of `size` entries."""
    before, (rows, high, wide), columns = shape_of(x)[: x.rank - 3], shape_of(x)[x.rank - 3 :], selection.which.size
    starts = entries[:: size] if entries.size else entries
    matrix = np.zeros((columns // size, rows // size), x.type.dtype.numpy)
    matrix[starts // size, selection.index[starts] // size] = selection.sign[starts]
    rank = len(before) + 3
    turn = (*range(rank - 3), rank - 2, rank - 3, rank - 1)
    apart = b.transpose(x=b.reshape(x=x, shape=(*before, rows // size, size, high * wide)), perm=turn)
    moved = b.matmul(x=literal(matrix, x.type.dtype), y=apart, transpose_x=False, transpose_y=False)
    return b.reshape(x=b.transpose(x=moved, perm=turn), shape=(*before, columns, high, wide))
