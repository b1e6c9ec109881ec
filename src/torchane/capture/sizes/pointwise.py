"""Rules of ops that compute each number from those in its place, of what makes tensors from sizes alone, and of random numbers."""

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx

from torchane.capture.sizes.axes import State, Value, axis_of, expression_of, stated
from torchane.capture.sizes.rewrite import Draw, Rewriter, rule, uses_padding

aten = torch.ops.aten

#: Give 0 for zeros in all operands; numbers of Python beside them only multiply or divide.
_KEEP_ZEROS = frozenset({
    aten.add, aten.sub, aten.rsub, aten.neg, aten.abs, aten.relu, aten.tanh, aten.gelu, aten.silu, aten.sign, aten.square, aten._to_copy,
    aten.clone, aten.erf, aten.leaky_relu, aten.hardtanh, aten.where, aten.maximum, aten.minimum, aten.sin, aten.logical_or, aten.bitwise_or,
})  # fmt: skip
#: Give 0 for zeros in one operand, if the others' rows are as finite as true ones.
_ZERO_FOR_ONE = frozenset({aten.mul, aten.logical_and, aten.bitwise_and})
#: Give finite numbers for finite numbers, but for an overflow.
_BOUNDED = _KEEP_ZEROS | _ZERO_FOR_ONE | frozenset({
    aten.sigmoid, aten.cos, aten.masked_fill, aten.clamp, aten.clamp_min, aten.clamp_max, aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge,
    aten.logical_not, aten.bitwise_not, aten.hardswish, aten.hardsigmoid, aten.elu, aten.softplus, aten.native_dropout,
})  # fmt: skip
#: Give finite numbers, and gradients, for ones.
_FINITE_AT_ONE = frozenset({
    aten.exp, aten.exp2, aten.expm1, aten.log, aten.log2, aten.log10, aten.log1p, aten.xlogy, aten.sqrt, aten.rsqrt, aten.reciprocal, aten.div,
    aten.pow, aten.cosh, aten.sinh, aten.tan, aten.logaddexp, aten.lgamma, aten.digamma, aten.fmod, aten.remainder, aten.atan2, aten.asinh, aten.lerp,
    aten.addcmul, aten.addcdiv, aten.mish,
})  # fmt: skip
_OF_A_NUMBER = {"Scalar": "Tensor", "Tensor": "Tensor", "Tensor_Scalar": "Tensor_Tensor"}


@rule("pointwise", aten._to_copy, aten.clone, aten.detach, aten.alias, aten.lift_fresh_copy)
def pointwise(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    op, args = _with_numbers(r, node, args)
    if op.overloadpacket in _FINITE_AT_ONE and not _is_power(op, args):
        args = tuple(_of_ones(r, op.overloadpacket, arg, bool(i)) for i, arg in enumerate(args))
    operands = [value for value in (*args, *kwargs.values()) if isinstance(value, Value)]
    axes, states = r.joined(*(value.axes for value in operands))
    packet = op.overloadpacket
    numbers = [value for value in args if isinstance(value, fx.Node) or (isinstance(value, int | float) and not isinstance(value, bool))]
    found = []
    for held in states:
        if all(state is State.EDGE for state in held):
            found.append(State.EDGE)
        else:
            is_all = len(held) == len(operands) and not any(isinstance(number, fx.Node) or number for number in numbers)
            found.append(_state(r, packet, held, is_all))
    if "memory_format" in kwargs:
        kwargs = {name: value for name, value in kwargs.items() if name != "memory_format"}
    return _values(r, node, r.emit(op, *args, **kwargs), stated(axes, found))


def _is_power(op: Any, args: tuple[Any, ...]) -> bool:
    """A whole power, which is finite for finite numbers."""
    return op is aten.pow.Tensor_Scalar and isinstance(args[1], int | float) and args[1] >= 1 and args[1] == int(args[1])


def _of_ones(r: Rewriter, packet: Any, arg: Any, is_second: bool) -> Any:
    """An operand with ones in rows that are no copies of true ones, where the op may give infinity or NaN for them; whole numbers end in
    an error where they are divided by 0."""
    if not isinstance(arg, Value) or arg.dtype is torch.bool or not (arg.dtype.is_floating_point or is_second):
        return arg
    for position in arg.padded:
        states = {factor.state for factor in arg.axes[position] if factor.is_padded}
        if State.LOOSE in states or (State.ZERO in states and (packet is not aten.div or is_second)):
            arg = r.filled(arg, position, 1)
    return arg


def _state(r: Rewriter, packet: Any, held: Sequence[State], is_all: bool) -> State:
    """Of rows that are no copies of true ones in some operand."""
    if packet in _ZERO_FOR_ONE and State.ZERO in held and State.LOOSE not in held:
        return State.ZERO
    if packet in (aten.detach, aten.alias, aten.lift_fresh_copy):
        return held[0]
    if packet is aten.div and held[0] is State.ZERO and State.LOOSE not in held:
        return State.ZERO  # the divisor's rows are a true one's
    if packet in _KEEP_ZEROS and is_all and all(state is State.ZERO for state in held):
        return State.ZERO
    if packet in _BOUNDED or packet in _FINITE_AT_ONE:
        return State.LOOSE
    raise r.no(f"{packet} of rows that only fill up may be infinite or NaN")


def _with_numbers(r: Rewriter, node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Sizes that are computed with become inputs, since the bucket's are not the true ones."""
    op: Any = node.target
    if not any(isinstance(arg, sympy.Basic) for arg in args):
        return op, args
    result = node.meta["val"].dtype
    dtype = result if result.is_floating_point else torch.int64
    overload = _OF_A_NUMBER.get(op._overloadname)
    is_operand = [isinstance(arg, sympy.Basic) and i < 2 for i, arg in enumerate(args)]
    if overload is None or sum(is_operand) != sum(isinstance(arg, sympy.Basic) for arg in args) or is_operand[0]:
        raise r.no(f"{op} takes a size that varies as a number")
    return getattr(op.overloadpacket, overload), tuple(r.number(arg, dtype) if is_one else arg for arg, is_one in zip(args, is_operand, strict=True))


def _values(r: Rewriter, node: fx.Node, made: fx.Node, axes: Any) -> Any:
    example = node.meta["val"]
    return Value(made, axes, example.dtype)


@rule("fixed")
def fixed(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An op without a rule is right as long as it sees nothing of a size that varies."""
    example = node.meta.get("val")
    if example is None:  # an assertion
        r.emit(node.target, *args, **kwargs)
        return None
    results = tuple(example) if isinstance(example, list | tuple) else (example,)
    varies = any(isinstance(size, torch.SymInt) for one in results if isinstance(one, torch.Tensor) for size in one.shape)
    if uses_padding(args) or uses_padding(tuple(kwargs.values())) or varies:
        raise r.no(f"{node.target} has no rule for sizes that vary")
    made = r.emit(node.target, *args, **kwargs)
    if not isinstance(example, list | tuple):
        return Value(made, tuple(axis_of(size) for size in example.shape), example.dtype)
    return tuple(
        Value(r.emit(_getitem, made, i), tuple(axis_of(size) for size in one.shape), one.dtype) if isinstance(one, torch.Tensor) else None
        for i, one in enumerate(results)
    )


def _getitem(value: Any, index: int) -> Any:
    return value[index]


# ---- made from sizes


@rule(aten.full, aten.zeros, aten.ones, aten.empty, aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.zeros_like, aten.ones_like,
      aten.full_like, aten.empty_like, aten.scalar_tensor, aten.empty_strided, aten.new_empty_strided)  # fmt: skip
def full(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """One number everywhere; what is left empty is written before it is read."""
    example = node.meta["val"]
    name = node.target.overloadpacket.__name__
    number: Any = 0
    if "ones" in name:
        number = 1
    elif name in ("full", "full_like"):
        number = args[1] if len(args) > 1 else kwargs["fill_value"]
    elif name == "new_full":
        number = args[2]
    elif name == "scalar_tensor":
        number = args[0]
    like = args[0] if args and isinstance(args[0], Value) and name.endswith("_like") else None
    axes = tuple(axis_of(size) for size in example.shape)
    if like is not None:
        axes = stated(like.axes, [State.EDGE for axis in like.axes for factor in axis if factor.is_padded])
    if isinstance(number, sympy.Basic):
        made = r.emit(aten.expand.default, r.number(number, example.dtype), r.shape(axes))
    else:
        made = r.emit(aten.full.default, r.shape(axes), number, dtype=example.dtype)
    return Value(made, axes, example.dtype)


@rule(aten.arange)
def arange(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    example = node.meta["val"]
    size = expression_of(example.shape[0])
    if isinstance(size, int) and not any(isinstance(arg, sympy.Basic) for arg in args):
        return Value(r.emit(node.target, *args, **kwargs), (axis_of(size),), example.dtype)
    start = args[0] if len(args) > 1 else 0
    step = args[2] if len(args) > 2 else 1
    if not isinstance(step, int):
        raise r.no("arange with a step that is no whole number")
    made = r.emit(aten.arange.default, size) if isinstance(size, int) else r.rows(size)
    if step != 1:
        made = r.emit(aten.mul.Tensor, made, step)
    if isinstance(start, sympy.Basic) or start != 0:
        made = r.emit(aten.add.Tensor, made, r.number(start) if isinstance(start, sympy.Basic) else start)
    if example.dtype != torch.int64:
        made = r.emit(aten._to_copy.default, made, dtype=example.dtype)
    return Value(made, (axis_of(size),), example.dtype)


# ---- random numbers


@rule("draws")
def draws(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Drawn for the true sizes before the graph runs, in the order and number of eager's; rows beyond copy the last true one."""
    packet = node.target.overloadpacket
    if packet is aten.native_dropout:
        return _dropout(r, node, args)
    example = node.meta["val"]
    like = next((arg for arg in args if isinstance(arg, Value)), None)
    reads = packet is aten.bernoulli and node.target is not aten.bernoulli.p
    if not isinstance(example, torch.Tensor) or (like is not None and (reads or args[0] is not like)) or packet in (aten.multinomial, aten.normal):
        raise r.no(f"{node.target} draws numbers that depend on values")
    axes = tuple(axis_of(size) for size in example.shape)
    if like is not None:
        axes = stated(like.axes, [State.EDGE for axis in like.axes for factor in axis if factor.is_padded])
    if any(isinstance(arg, sympy.Basic) for arg in kwargs.values()):
        raise r.no(f"{node.target} takes a size that varies as a number")
    sizes = tuple(tuple(factor.size for factor in axis) for axis in axes)
    return _drawn(r, Draw(node.target, sizes, example.dtype, _steps(example), tuple(None if arg is like else arg for arg in args), kwargs), axes)


def _drawn(r: Rewriter, draw: Draw, axes: Any) -> Value:
    return Value(r.add(draw), axes, draw.dtype)


def _dropout(r: Rewriter, node: fx.Node, args: tuple[Any, ...]) -> tuple[Value, Value]:
    """As capture/rules/decompose.py takes it apart; the gradient is autograd's own."""
    x, p, train = args
    axes = stated(x.axes, [State.EDGE for axis in x.axes for factor in axis if factor.is_padded])
    if train is False or p in (0, 1):
        ones = Value(r.emit(aten.full.default, r.shape(axes), p != 1, dtype=torch.bool), axes, torch.bool)
        return (x if p != 1 else Value(r.emit(aten.mul.Scalar, x.node, 0), x.axes, x.dtype)), ones
    sizes = tuple(tuple(factor.size for factor in axis) for axis in axes)
    mask = _drawn(r, Draw(aten.bernoulli.p, sizes, torch.bool, _steps(node.args[0].meta["val"]), (None, 1 - p), {}), axes)  # type: ignore[union-attr]
    kept = r.emit(aten.mul.Scalar, r.emit(aten.mul.Tensor, x.node, mask.node), 1 / (1 - p))
    return Value(kept, x.axes, x.dtype), mask


def _steps(value: torch.Tensor) -> tuple[Any, ...]:
    return tuple(expression_of(step) for step in value.stride())
