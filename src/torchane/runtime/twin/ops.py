"""From MIL ops to the twin's steps: one rule per op, the only list of what the twin runs.

    @runs("softmax")
    def _(schedule, op, x, axis=-1): ...

A rule is given the operands as Arrays and every other argument as plain Python, and returns the Array of its
result (a tuple where the op has several). It raises Unsupported with a reason for a form that has no kernel.
An op that only gives numbers another shape costs nothing: its result is an Array of the same root.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from torchane import native
from torchane.mil.fast import FACTORS, rounds
from torchane.mil.ir import Literal, Op
from torchane.mil.ops.support import positive_axes, positive_axis
from torchane.runtime.twin.arrays import Array, Shape, broadcast_strides, dense_strides, new
from torchane.runtime.twin.chain import Micro
from torchane.runtime.twin.schedule import Call, Schedule
from torchane.runtime.twin.selection import selection

Rule = Callable[..., Array | tuple[Array, ...]]

#: Every op that the twin runs, by its MIL name.
RULES: dict[str, Rule] = {}


class Unsupported(Exception):
    """A form of an op that the twin has no kernel for; the message is the reason."""


def runs(*names: str) -> Callable[[Rule], Rule]:
    """Registers the rule of these ops; it finds the op's name in `op.kind.name`."""

    def register(rule: Rule) -> Rule:
        for name in names:
            assert name not in RULES, f"{name} has two rules"
            RULES[name] = rule
        return rule

    return register


def _result(op: Op) -> Shape:
    return op.output.shape  # type: ignore[return-value]


# --- numbers that stay as they are --------------------------------------------------------------------------------


@runs("reshape", "expand_dims", "squeeze", "flatten2d", "identity")
def _(schedule: Schedule, op: Op, x: Array, **_shape: Any) -> Array:
    schedule.aliases.append(op.kind.name)
    return x.reshaped(_result(op))


@runs("cast")
def _(schedule: Schedule, op: Op, x: Array, dtype: str) -> Array:
    if dtype != "fp16":
        raise Unsupported(f"it casts to {dtype}, and the twin computes in fp16 only")
    schedule.aliases.append("cast")
    return x


@runs("transpose")
def _(schedule: Schedule, op: Op, x: Array, perm: tuple[int, ...]) -> Array:
    perm = tuple(axis % len(x.shape) for axis in perm)
    moved = [axis for axis in perm if x.shape[axis] != 1]
    if moved == sorted(moved):
        schedule.aliases.append("transpose")
        return x.reshaped(_result(op))
    strides = dense_strides(x.shape)
    return _copied(schedule, op, x, tuple(strides[axis] for axis in perm))


@runs("slice_by_size")
def _(schedule: Schedule, op: Op, x: Array, begin: tuple[int, ...], size: tuple[int, ...]) -> Array:
    return _part(schedule, op, x, begin, _result(op))


@runs("split")
def _(schedule: Schedule, op: Op, x: Array, axis: int, **_sizes: Any) -> tuple[Array, ...]:
    axis = positive_axis("split", axis, len(x.shape))
    parts, start = [], 0
    for var in op.outputs:
        begin = tuple(start if a == axis else 0 for a in range(len(x.shape)))
        parts.append(_part(schedule, op, x, begin, var.shape, counted=not parts))  # type: ignore[arg-type]
        start += var.shape[axis]  # type: ignore[operator]
    return tuple(parts)


def _part(schedule: Schedule, op: Op, x: Array, begin: Shape, shape: Shape, *, counted: bool = True) -> Array:
    """x[begin : begin + shape]: another Array where the part is dense, else a copy."""
    strides = dense_strides(x.shape)
    part = Array(x.root, shape, x.offset + sum(b * s for b, s in zip(begin, strides, strict=True)))
    names = [op.kind.name] if counted else []
    long = [axis for axis, size in enumerate(shape) if size != 1]
    if not long or shape[long[0] + 1 :] == x.shape[long[0] + 1 :]:
        schedule.aliases.extend(names)
        return part
    return _copied(schedule, op, part, strides, shape, names)


def _copied(
    schedule: Schedule, op: Op, x: Array, strides: Shape, shape: Shape | None = None, names: list[str] | None = None
) -> Array:
    """What begins where x does, walked with `strides`, as a dense array."""
    out = new(_result(op) if shape is None else shape)
    names = [op.kind.name] if names is None else names
    values = {"sizes": out.shape, "x_strides": strides, "out_strides": dense_strides(out.shape)}
    schedule.add(Call(names, "copy", (x,), out, values))
    return out


@runs("concat")
def _(schedule: Schedule, op: Op, values: tuple[Array, ...], axis: int, interleave: bool = False) -> Array:
    if interleave:
        raise Unsupported("its values are interleaved, and the twin only puts them one behind the other")
    out = new(_result(op))
    axis = positive_axis("concat", axis, len(out.shape))
    strides = dense_strides(out.shape)
    start = 0
    for index, value in enumerate(values):
        part = Array(out.root, value.shape, start * strides[axis])
        names = ["concat"] if index == 0 else []
        sizes = {"sizes": value.shape, "x_strides": dense_strides(value.shape), "out_strides": strides}
        schedule.add(Call(names, "copy", (value,), part, sizes))
        start += value.shape[axis]
    return out


@runs("pad")
def _(schedule: Schedule, op: Op, x: Array, pad: Shape, mode: str = "constant", constant_val: float = 0.0) -> Array:
    if mode != "constant":
        raise Unsupported(f"it pads by {mode}, and the twin pads with one number")
    out = new(_result(op))
    rank, strides = len(out.shape), dense_strides(out.shape)
    before = (0,) * (rank - len(pad) // 2) + tuple(pad[::2])
    assert schedule.constant is not None, "a loader gives constants"
    everywhere = {"sizes": out.shape, "x_strides": (0,) * rank, "out_strides": strides}
    schedule.add(Call(["pad"], "copy", (schedule.constant(constant_val),), out, everywhere))
    part = Array(out.root, x.shape, sum(start * stride for start, stride in zip(before, strides, strict=True)))
    inside = {"sizes": x.shape, "x_strides": dense_strides(x.shape), "out_strides": strides}
    schedule.add(Call([], "copy", (x,), part, inside))
    return out


# --- element-wise -------------------------------------------------------------------------------------------------


@runs("abs", "exp", "sqrt", "tanh", "sigmoid", "silu", "relu", "square", "erf")
def _(schedule: Schedule, op: Op, x: Array) -> Array:
    return schedule.element_wise(Micro(op.kind.name, "unary", op.kind.name, (x,), new(_result(op))))


@runs("log")
def _(schedule: Schedule, op: Op, x: Array, epsilon: float = 1e-45) -> Array:
    if np.float16(epsilon) != 0:
        raise Unsupported(f"its epsilon is {epsilon}, and the twin adds none; add it in an op of its own")
    return schedule.element_wise(Micro("log", "unary", "log", (x,), new(_result(op))))


_BINARY = {
    "add": "add", "sub": "sub", "mul": "mul", "real_div": "div", "maximum": "max", "minimum": "min", "pow": "pow",
}  # fmt: skip


@runs(*(name for name in _BINARY if name != "pow"))
def _(schedule: Schedule, op: Op, x: Array, y: Array) -> Array:
    return schedule.element_wise(Micro(op.kind.name, "binary", _BINARY[op.kind.name], (x, y), new(_result(op))))


#: Exponents with a kernel of their own.
_POWERS = {-1.0: "inverse", -0.5: "pow_minus_half", 0.5: "sqrt", 1.0: "copy", 2.0: "square", 3.0: "cube"}


@runs("pow")
def _(schedule: Schedule, op: Op, x: Array, y: Array) -> Array:
    exponent = op.args["y"]
    if isinstance(exponent, Literal) and y.size == 1:
        code = _POWERS.get(float(exponent.value.item()))  # type: ignore[union-attr]
        if code in ("sqrt", "copy") and schedule.arithmetic == "engine":
            code = None  # the engine's sqrt is a table, its pow is not known to be; and no NaN comes out of it as it was
        if code is not None and x.size == math.prod(_result(op)):
            return schedule.element_wise(Micro("pow", "unary", code, (x,), new(_result(op))))
    return schedule.element_wise(Micro("pow", "binary", "pow", (x, y), new(_result(op))))


# --- reductions ---------------------------------------------------------------------------------------------------


@runs("reduce_sum", "reduce_mean", "reduce_max", "reduce_min")
def _(schedule: Schedule, op: Op, x: Array, axes: tuple[int, ...] | None = None, keep_dims: bool = False) -> Array:
    gone = set(positive_axes(op.kind.name, axes, len(x.shape)))
    out = new(_result(op))
    code = op.kind.name.removeprefix("reduce_")
    long = [axis for axis, size in enumerate(x.shape) if size != 1]
    if not gone & set(long):
        schedule.aliases.append(op.kind.name)
        return x.reshaped(out.shape)
    first = min(axis for axis in long if axis in gone)
    if all(axis in gone for axis in long if axis >= first):
        return schedule.element_wise(Micro(op.kind.name, "row", code, (x,), out, row=math.prod(x.shape[first:])))
    values = {
        "reduction": native.REDUCTION[code],
        "sizes": [x.shape[axis] for axis in long],
        "kept": [axis not in gone for axis in long],
    }
    schedule.add(Call([op.kind.name], "reduce", (x,), out, values))
    return out


@runs("softmax")
def _(schedule: Schedule, op: Op, x: Array, axis: int = -1) -> Array:
    axis = positive_axis("softmax", axis, len(x.shape))
    out = new(x.shape)
    entries, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
    if inner == 1 and entries > 1:
        return schedule.element_wise(Micro("softmax", "softmax", "softmax", (x,), out, row=entries))
    values = {"outer": math.prod(x.shape[:axis]), "entries": entries, "inner": inner}
    schedule.add(Call(["softmax"], "softmax", (x,), out, values))
    return out


# --- products -----------------------------------------------------------------------------------------------------


@runs("matmul")
def _(schedule: Schedule, op: Op, x: Array, y: Array, transpose_x: bool = False, transpose_y: bool = False) -> Array:
    out = new(_result(op))
    m, n = out.shape[-2:]
    k = x.shape[-2] if transpose_x else x.shape[-1]
    batch = out.shape[:-2]
    x_strides = tuple(stride * m * k for stride in broadcast_strides(x.shape[:-2], batch))
    y_strides = tuple(stride * k * n for stride in broadcast_strides(y.shape[:-2], batch))
    if not transpose_x and not any(y_strides) and x.size == math.prod(batch) * m * k:
        m, batch, x_strides, y_strides = m * math.prod(batch), (), (), ()  # one tall product
    _product(schedule, op, (x, y), out, (m, n, k), (transpose_x, transpose_y), batch, x_strides, y_strides)
    return out


@runs("conv")
def _(
    schedule: Schedule,
    op: Op,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: tuple[int, ...] = (1, 1),
    pad_type: str = "valid",
    pad: tuple[int, ...] = (0, 0, 0, 0),
    dilations: tuple[int, ...] = (1, 1),
    groups: int = 1,
) -> Array:
    """A 1x1 convolution is a product: (O, C) times (C, H * W) for each of the batch."""
    if set(weight.shape[2:]) - {1} or set(strides) - {1} or groups != 1 or (pad_type == "custom" and any(pad)):
        raise Unsupported(
            f"its weight is {weight.shape}, strides {strides}, pad {pad}, groups {groups}; "
            "the twin runs 1x1 convolutions with strides of 1, no padding and 1 group"
        )
    if bias is not None and schedule.arithmetic == "engine":
        raise Unsupported("it has a bias, from which the engine's sum starts; add the bias in an op of its own")
    batch, channels = x.shape[:2]
    out = new(_result(op))
    points = math.prod(x.shape[2:])
    sizes = (weight.shape[0], points, channels)
    _product(schedule, op, (weight, x), out, sizes, (False, False), (batch,), (0,), (channels * points,))
    if bias is None:
        return out
    per_channel = bias.reshaped((bias.size, *(1,) * (len(out.shape) - 2)))
    return schedule.element_wise(Micro("", "binary", "add", (out, per_channel), new(out.shape)))


def _moves(op: Op, sizes: tuple[int, int, int], transposed: tuple[bool, bool], strides: tuple[Shape, Shape]) -> dict[str, Any] | None:
    """What the tape's select() is given besides, if this product only moves numbers."""
    names = ("weight", "x") if op.kind.name == "conv" else FACTORS[op.kind.name]
    for index, name in enumerate(names):
        factor = op.args.get(name)
        if isinstance(factor, Literal) and isinstance(factor.value, np.ndarray) and not any(strides[index]):
            found = selection(factor.value, index == 0, sizes, transposed)
            if found is not None:
                return found
    return None


def _product(
    schedule: Schedule,
    op: Op,
    operands: tuple[Array, Array],
    out: Array,
    sizes: tuple[int, int, int],
    transposed: tuple[bool, bool],
    batch: Shape,
    x_strides: Shape,
    y_strides: Shape,
) -> None:
    m, n, k = sizes
    values = {
        "m": m, "n": n, "k": k, "transpose_x": transposed[0], "transpose_y": transposed[1],
        "batch": batch, "x_strides": x_strides, "y_strides": y_strides,
    }  # fmt: skip
    moves = None if schedule.arithmetic == "engine" else _moves(op, sizes, transposed, (x_strides, y_strides))
    if moves is not None:
        schedule.add(Call([op.kind.name], "select", operands, out, values | moves))
        return
    values["exact"] = not rounds(op)
    schedule.add(Call([op.kind.name], "matmul", operands, out, values))
