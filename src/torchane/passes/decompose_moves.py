"""Write moves of elements with reshape, slice_by_size and concat, and pads of one axis at a time.

    a, b = split(x, axis)            ->  a = slice_by_size(x), b = slice_by_size(x)
    y = stack(a, b, axis)            ->  y = concat(reshape(a), reshape(b), axis)
    y = squeeze / expand_dims / flatten2d(x)      ->  y = reshape(x)
    y = slice_by_index(x) with steps of 1         ->  y = reshape(slice_by_size(x))
    y = tile(x, reps)                ->  y = x * ones for axes of one entry, concat(x, x, ..) for the others
    y = reverse(x, axes), gather(x, constant), slice_by_index with other steps
                                     ->  y = concat of slices of one entry, which lower_selections gathers
    y = pad(x) on several axes       ->  y = pad(pad(x)); on none: y = x
Same bits.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from torchane.chips import Chip
from torchane.mil.build import Builder
from torchane.mil.ir import Literal, Op, Program, Var
from torchane.passes.rewrite import Rule, rewrite, shape_of, unless_taken


def decompose_moves(program: Program, chip: Chip | None = None) -> Program:
    return rewrite(program, unless_taken(RULES, chip))


def sliced(b: Builder, x: Var, axis: int, start: int, count: int) -> Var:
    """x[start : start + count] on one axis."""
    shape = shape_of(x)
    if count == shape[axis]:
        return x
    begin = [start if a == axis else 0 for a in range(len(shape))]
    return b.slice_by_size(x=x, begin=begin, size=[count if a == axis else size for a, size in enumerate(shape)])


def _reshape(b: Builder, op: Op) -> Var:
    return b.reshape(x=op.args["x"], shape=shape_of(op.output))


def _split(b: Builder, op: Op) -> tuple[Var, ...]:
    x = op.args["x"]
    axis = op.value("axis") % x.rank
    counts = [shape_of(var)[axis] for var in op.outputs]
    starts = itertools.accumulate(counts[:-1], initial=0)
    return tuple(sliced(b, x, axis, start, count) for start, count in zip(starts, counts))


def _stack(b: Builder, op: Op) -> Var:
    axis = op.value("axis") % op.output.rank
    one = (*op.output.shape[:axis], 1, *op.output.shape[axis + 1 :])
    return b.concat(values=[b.reshape(x=value, shape=one) for value in op.args["values"]], axis=axis)


def _tile(b: Builder, op: Op) -> Var:
    x, reps = op.args["x"], op.value("reps")
    for axis, count in enumerate(reps):
        if count > 1 and shape_of(x)[axis] > 1:
            x = b.concat(values=[x] * count, axis=axis)
    if shape_of(x) == shape_of(op.output):
        return x
    return b.mul(x=x, y=np.ones(shape_of(op.output), op.output.type.dtype.numpy))


def _picked(b: Builder, x: Var, axis: int, indices: Sequence[int]) -> Var:
    """The entries of one axis at `indices`: runs of neighbours as slices, joined."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index:
            runs[-1][1] += 1
        else:
            runs.append([index, index + 1])
    parts = [sliced(b, x, axis, start, end - start) for start, end in runs]
    return parts[0] if len(parts) == 1 else b.concat(values=parts, axis=axis)


def _reverse(b: Builder, op: Op) -> Var:
    x = op.args["x"]
    for axis in op.value("axes", tuple(range(x.rank))):
        axis %= x.rank
        x = _picked(b, x, axis, range(shape_of(x)[axis] - 1, -1, -1))
    return x


def _slice_by_index(b: Builder, op: Op) -> Var | None:
    x = op.args["x"]
    if not all(isinstance(op.args[name], Literal) for name in ("begin", "end")):
        return None
    rank = x.rank
    begin, end, stride = op.value("begin"), op.value("end"), op.value("stride", (1,) * rank)
    masks = {name: op.value(name, (False,) * rank) for name in ("begin_mask", "end_mask", "squeeze_mask")}
    for axis, size in enumerate(shape_of(x)):
        if masks["squeeze_mask"][axis]:
            picked = [begin[axis] % size]
        else:
            start = None if masks["begin_mask"][axis] else begin[axis]
            stop = None if masks["end_mask"][axis] else end[axis]
            picked = range(*slice(start, stop, stride[axis]).indices(size))
        x = _picked(b, x, axis, picked)
    return b.reshape(x=x, shape=shape_of(op.output)) if any(masks["squeeze_mask"]) else x


def _gather(b: Builder, op: Op) -> Var | None:
    x, indices = op.args["x"], op.args["indices"]
    if not isinstance(indices, Literal) or not isinstance(x, Var) or op.value("batch_dims", 0):
        return None
    axis = op.value("axis", 0) % x.rank
    picked = _picked(b, x, axis, [int(index) % shape_of(x)[axis] for index in indices.value.flat])
    return picked if shape_of(picked) == shape_of(op.output) else b.reshape(x=picked, shape=shape_of(op.output))


def _pad(b: Builder, op: Op) -> Var | None:
    """One op for each axis that grows. Other modes than `constant` stay, and are refused later."""
    x, sizes = op.args["x"], op.value("pad")
    pairs = list(zip(sizes[::2], sizes[1::2]))
    axes = [(x.rank - len(pairs) + index, pair) for index, pair in enumerate(pairs) if any(pair)]
    if len(axes) == 1 or op.value("mode", "constant") != "constant":
        return None
    for axis, (before, after) in axes:
        pad = [0] * (2 * x.rank)
        pad[2 * axis : 2 * axis + 2] = before, after
        x = b.pad(x=x, pad=pad, mode="constant", constant_val=op.args.get("constant_val"))
    return x


RULES: dict[str, Rule] = {
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "flatten2d": _reshape,
    "split": _split,
    "stack": _stack,
    "tile": _tile,
    "reverse": _reverse,
    "slice_by_index": _slice_by_index,
    "gather": _gather,
    "pad": _pad,
}
