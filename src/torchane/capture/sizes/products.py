"""Rules of ops that sum: reductions, softmax, norms, products and losses."""

import math
import operator
from typing import Any

import sympy
import torch
from torch import fx

from torchane.capture.sizes.axes import Axis, State, Value, axis_of, expression_of, is_alike, is_padded, size_of, stated, with_state
from torchane.capture.sizes.rewrite import RULES, Like, Rewriter, rule

aten = torch.ops.aten


# ---- reductions


def _positions(value: Value, asked: Any) -> tuple[int, ...]:
    if asked is None or asked == ():
        return tuple(range(len(value.axes)))
    given = asked if isinstance(asked, tuple) else (asked,)
    return tuple(position % max(len(value.axes), 1) for position in given)


def _without(value: Value, positions: tuple[int, ...], keeps: bool) -> tuple[Axis, ...]:
    if keeps:
        return tuple(() if i in positions else axis for i, axis in enumerate(value.axes))
    return tuple(axis for i, axis in enumerate(value.axes) if i not in positions)


@rule(aten.sum, aten.mean)
def total(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, asked, keeps = (*args, None, False)[:3] if len(args) < 3 else args[:3]
    positions = _positions(x, kwargs.get("dim", asked))
    padded = tuple(i for i in positions if is_padded(x.axes[i]))
    dtype = node.meta["val"].dtype
    axes = _without(x, positions, bool(kwargs.get("keepdim", keeps)))
    is_mean = node.target.overloadpacket is aten.mean
    if not x.axes or not positions:
        return Value(r.emit(node.target, *args, **kwargs), axes, dtype)
    summed = r.zeroed(x, *padded).node if padded else x.node
    keeps = bool(kwargs.get("keepdim", keeps))
    if not padded and is_mean:
        return Value(r.emit(aten.mean.dim, summed, list(positions), keeps, dtype=dtype), axes, dtype)
    if not is_mean:
        return Value(r.emit(aten.sum.dim_IntList, summed, list(positions), keeps, dtype=dtype), axes, dtype)
    made = r.emit(aten.mean.dim, summed, list(positions), keeps, dtype=dtype)
    return Value(r.emit(aten.mul.Tensor, made, _of_bucket(r, x, positions, dtype)), axes, dtype)


def _of_bucket(r: Rewriter, x: Value, positions: tuple[int, ...], dtype: torch.dtype, less: int = 0) -> fx.Node:
    """How many numbers a bucket's mean is of, for each that the true one is of, less a few. A count of all has no place in fp16 beyond 65504."""
    true: Any = 1
    for position in positions:
        true = true * size_of(x.axes[position])
    return r.number(sympy.Integer(r.at(expression_of(true))) / (true - less), dtype)


@rule(aten.amax, aten.amin, aten.logsumexp, aten.any, aten.all, aten.max, aten.min, aten.argmax, aten.argmin)
def extreme(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    packet = node.target.overloadpacket
    if packet in (aten.max, aten.min) and len(args) > 1 and isinstance(args[1], Value):
        return RULES["pointwise"](r, node, args, kwargs)
    x, asked, keeps = (*args, None, False)[:3] if len(args) < 3 else args[:3]
    positions = _positions(x, kwargs.get("dim", asked))
    keeps = bool(kwargs.get("keepdim", keeps))
    given = args[1:]
    if packet in (aten.argmax, aten.argmin) and len(positions) > 1 and any(map(is_padded, x.axes[1:])):
        raise r.no(f"{packet} counts places over axes whose sizes vary")
    gives_places = packet in (aten.argmax, aten.argmin) or isinstance(node.meta["val"], tuple | list)
    for position in positions:
        if x.axes and is_padded(x.axes[position]):
            if gives_places:
                r.single(x.axes[position])
            x = _hidden(r, packet, x, position)
    axes = _without(x, positions, keeps)
    if packet is aten.logsumexp:
        axes = _loosened(axes)
    made = r.emit(node.target, x.node, *given, **kwargs)
    if isinstance(node.meta["val"], tuple | list):
        return tuple(Value(r.emit(operator.getitem, made, i), axes, one.dtype) for i, one in enumerate(node.meta["val"]))
    return Value(made, axes, node.meta["val"].dtype)


def _hidden(r: Rewriter, packet: Any, x: Value, position: int) -> Value:
    """Rows that only fill up change nothing of a maximum. Copies of a true one do not either, but share its gradient. Of equal numbers
    the first is the one whose place is given."""
    is_of_truth = packet in (aten.any, aten.all)
    if is_of_truth or not x.dtype.is_floating_point:
        if all(factor.state is State.EDGE for factor in x.axes[position] if factor.is_padded):
            return x
        if not is_of_truth:
            raise r.no(f"{packet} of rows that only fill up")
        return r.zeroed(x, position) if packet is aten.any else r.filled(x, position, 1)
    return r.filled(x, position, math.inf if packet in (aten.amin, aten.min, aten.argmin) else -math.inf)


@rule(aten._softmax, aten._safe_softmax, aten._log_softmax)
def softmax(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, position = args[:2]
    dtype = node.meta["val"].dtype
    if not x.axes or not is_padded(x.axes[position]):
        return Value(r.emit(node.target, *args, **kwargs), _loosened(x.axes), dtype)
    position %= len(x.axes)
    x = Value(x.node, _loosened(x.axes), x.dtype)  # a row of zeros has equal probabilities
    hidden = r.filled(x, position, -math.inf)
    made = r.emit(node.target, hidden.node, position, *args[2:], **kwargs)
    if node.target.overloadpacket is aten._log_softmax:  # -inf in those rows, which no product would make 0
        zeros = r.filled(Value(made, x.axes, dtype), position, 0)
        return zeros.where(position, with_state(x.axes[position], State.ZERO))
    return Value(made, x.axes, dtype).where(position, with_state(x.axes[position], State.ZERO))


@rule(aten.var)
def variance(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    positions = _positions(x, args[1] if len(args) > 1 else kwargs.get("dim"))
    if not any(is_padded(x.axes[position]) for position in positions):
        return along_fixed(r, node, args, kwargs)
    given = kwargs.get("correction", 1)
    mean = total(r, Like(aten.mean.dim, node), (x, positions, True), {})  # type: ignore[arg-type]
    apart = RULES["pointwise"](r, Like(aten.sub.Tensor, node), (x, mean), {})  # type: ignore[arg-type]
    square = RULES["pointwise"](r, Like(aten.mul.Tensor, node), (apart, apart), {})  # type: ignore[arg-type]
    zeroed = r.zeroed(square, *(position for position in positions if is_padded(x.axes[position])))
    keeps = bool(kwargs.get("keepdim", False))
    made = r.emit(aten.mean.dim, zeroed.node, list(positions), keeps)
    scale = _of_bucket(r, x, positions, x.dtype, 1 if given is None else int(given))
    return Value(r.emit(aten.mul.Tensor, made, scale), _without(x, positions, keeps), x.dtype)


@rule(aten.linalg_vector_norm)
def vector_norm(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x = args[0]
    order = args[1] if len(args) > 1 else kwargs.get("ord", 2)
    positions = _positions(x, args[2] if len(args) > 2 else kwargs.get("dim"))
    keeps = bool(args[3] if len(args) > 3 else kwargs.get("keepdim", False))
    padded = [position for position in positions if is_padded(x.axes[position])]
    if padded and order <= 0:
        raise r.no("a norm of an order of 0 or less along an axis whose size varies")
    zeroed = r.zeroed(x, *padded)
    return Value(r.emit(node.target, zeroed.node, order, list(positions), keeps), _without(x, positions, keeps), node.meta["val"].dtype)


@rule(aten.prod)
def multiplied(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x = args[0]
    positions = _positions(x, args[1] if len(args) > 1 else None)
    for position in positions:
        if x.axes and is_padded(x.axes[position]):
            x = r.filled(x, position, 1)
    axes = _without(x, positions, bool(args[2]) if len(args) > 2 else False)
    return Value(r.emit(node.target, x.node, *args[1:], **kwargs), axes, node.meta["val"].dtype)


@rule(aten.std, aten.var_mean, aten.logcumsumexp, aten.cummax, aten.cummin, aten.median, aten.kthvalue, aten.norm)
def along_fixed(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Along axes of fixed size, for rows that each are computed alone."""
    x, packet = args[0], node.target.overloadpacket
    place = 2 if packet in (aten.kthvalue, aten.norm) else 1
    asked = kwargs["dim"] if "dim" in kwargs else args[place] if len(args) > place else None
    positions = _positions(x, asked)
    if any(is_padded(x.axes[position]) for position in positions):
        raise r.no(f"{node.target} along an axis whose size varies")
    x = Value(x.node, _loosened(x.axes), x.dtype)
    example = node.meta["val"]
    made = r.emit(node.target, *args, **kwargs)
    several = isinstance(example, tuple | list)

    def axes_of(one: torch.Tensor) -> tuple[Axis, ...]:
        if len(one.shape) == len(x.axes):
            return tuple(axis_of(one.shape[i]) if i in positions else axis for i, axis in enumerate(x.axes))
        return _without(x, positions, False)

    if not several:
        return Value(made, axes_of(example), example.dtype)
    return tuple(Value(r.emit(operator.getitem, made, i), axes_of(one), one.dtype) for i, one in enumerate(example))


# ---- norms


def _loosened(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    return stated(axes, [State.EDGE if f.state is State.EDGE else State.LOOSE for axis in axes for f in axis if f.is_padded])


@rule(aten.native_layer_norm, aten._fused_rms_norm)
def layer_norm(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    x, shape = args[:2]
    first = len(x.axes) - len(shape)
    if any(is_padded(axis) for axis in x.axes[first:]):
        raise r.no("a norm over an axis whose size varies")
    made = r.emit(node.target, *args, **kwargs)
    axes = _loosened(x.axes)
    found = [Value(r.emit(operator.getitem, made, 0), axes, node.meta["val"][0].dtype)]
    for i, one in enumerate(node.meta["val"][1:], 1):
        found.append(Value(r.emit(operator.getitem, made, i), (*axes[:first], *(() for _ in shape)), one.dtype))
    return tuple(found)


@rule(aten.native_group_norm)
def group_norm(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    x = args[0]
    if any(is_padded(axis) for axis in x.axes[1:]) or len(x.axes[0]) > 1:
        raise r.no("a norm over an axis whose size varies")
    made = r.emit(node.target, *args[:3], r.at(args[3]), *args[4:], **kwargs)
    axes = _loosened(x.axes)
    groups = axis_of(args[6])
    values = [Value(r.emit(operator.getitem, made, 0), axes, x.dtype)]
    values += [Value(r.emit(operator.getitem, made, i), (axes[0], groups), node.meta["val"][i].dtype) for i in (1, 2)]
    return tuple(values)


# ---- products


def _contracted(r: Rewriter, a: Value, i: int, b: Value, j: int) -> tuple[Value, Value]:
    """Zeros in one of them, in the rows that only fill up."""
    if not is_alike(a.axes[i], b.axes[j]):
        raise r.no(f"{r.source.target if r.source else ''}: rows of one operand are no rows of the other")
    if not is_padded(a.axes[i]):
        return a, b
    if any(f.state is State.LOOSE for f in a.axes[i]):  # 0 times that may be NaN
        a = r.zeroed(a, i)
    if any(f.state is State.LOOSE for f in b.axes[j]):
        b = r.zeroed(b, j)
    if any(all(f.state is State.ZERO for f in axis if f.is_padded) for axis in (a.axes[i], b.axes[j])):
        return a, b
    is_smaller = math.prod(r.shape(a.axes)) <= math.prod(r.shape(b.axes))
    return (r.zeroed(a, i), b) if is_smaller else (a, r.zeroed(b, j))


def _product(r: Rewriter, a: Value, b: Value) -> tuple[Value, Value, tuple[Axis, ...]]:
    """(.., M, K) @ (.., K, N)"""
    a, b = _contracted(r, a, len(a.axes) - 1, b, len(b.axes) - 2)
    outer, states = r.joined(a.axes[:-2], b.axes[:-2])
    found = [State.LOOSE if State.LOOSE in held else State.ZERO if State.ZERO in held else State.EDGE for held in states]
    return a, b, (*stated(outer, found), a.axes[-2], b.axes[-1])


@rule(aten.mm, aten.bmm)
def product(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    a, b, axes = _product(r, *args)
    return Value(r.emit(node.target, a.node, b.node), axes, node.meta["val"].dtype)


@rule(aten.addmm, aten.baddbmm)
def sum_of_product(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    bias, a, b = args
    a, b, axes = _product(r, a, b)
    together, states = r.joined(bias.axes, axes)
    of_all = iter([f.state for axis in axes for f in axis if f.is_padded])
    found = [State.EDGE if all(s is State.EDGE for s in held) and next(of_all) is State.EDGE else State.LOOSE for held in states]
    return Value(r.emit(node.target, bias.node, a.node, b.node, **kwargs), stated(together, found), node.meta["val"].dtype)


@rule(aten.mv, aten.dot)
def vector_product(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    a, b = _contracted(r, args[0], len(args[0].axes) - 1, args[1], 0)
    return Value(r.emit(node.target, a.node, b.node), a.axes[:-1], node.meta["val"].dtype)


@rule(aten.convolution)
def convolution(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, weight, bias, stride, padding, dilation, transposed = args[:7]
    along = tuple(i for i, axis in enumerate(x.axes) if i > 1 and is_padded(axis))
    if is_padded(x.axes[1]) or any(map(is_padded, weight.axes)):
        raise r.no("a convolution over channels whose number varies")
    strides = stride * (len(x.axes) - 2) if len(stride) == 1 else stride
    if along and (transposed or any(strides[i - 2] != 1 for i in along)):
        raise r.no("a convolution with a stride along an axis whose size varies" if not transposed else "a transposed convolution along an axis whose size varies")
    example = node.meta["val"]
    x = r.zeroed(x, *along)  # what it sees beyond the last true row
    axes = (x.axes[0], *(axis_of(size, State.LOOSE) for size in example.shape[1:]))
    return Value(r.emit(node.target, x.node, *args[1:], **kwargs), _loosened(axes), example.dtype)


@rule(aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.upsample_nearest2d, aten.upsample_bilinear2d,
      aten._native_batch_norm_legit_no_training)  # fmt: skip
def by_sample(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Each sample alone."""
    x = args[0]
    if any(is_padded(axis) for axis in x.axes[1:]) or any(isinstance(arg, sympy.Basic) for arg in args):
        raise r.no(f"{node.target} along an axis whose size varies")
    made, example = r.emit(node.target, *args, **kwargs), node.meta["val"]
    if isinstance(example, torch.Tensor):
        return Value(made, _loosened((x.axes[0], *(axis_of(size) for size in example.shape[1:]))), example.dtype)
    return tuple(
        Value(r.emit(operator.getitem, made, i), _loosened((x.axes[0] if len(one.shape) > 1 else axis_of(one.shape[0]), *(axis_of(size) for size in one.shape[1:]))), one.dtype)  # fmt: skip
        for i, one in enumerate(example)
    )


# ---- losses


@rule(aten.nll_loss_forward, aten.nll_loss2d_forward)
def nll_loss(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Value, Value]:
    """Rows that only fill up have the label that is left out."""
    x, target, weight, reduction, ignored = args
    for position in target.padded:
        hidden = r.emit(aten.logical_not.default, r.mask(target, position))
        target = Value(r.emit(aten.masked_fill.Scalar, target.node, hidden, ignored), target.axes, target.dtype)
    made = r.emit(node.target, x, target, weight, reduction, ignored)
    axes = _loosened(stated(target.axes, [State.LOOSE for axis in target.axes for f in axis if f.is_padded])) if reduction == 0 else ()
    first, second = (r.emit(operator.getitem, made, i) for i in (0, 1))
    return Value(first, axes, node.meta["val"][0].dtype), Value(second, (), node.meta["val"][1].dtype)


@rule(aten.mse_loss, aten.smooth_l1_loss, aten.huber_loss, aten.soft_margin_loss, aten.binary_cross_entropy, aten.binary_cross_entropy_with_logits)
def loss(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """Each number's, then their sum or mean."""
    packet = node.target.overloadpacket
    place = {aten.binary_cross_entropy: 3, aten.binary_cross_entropy_with_logits: 4}.get(packet, 2)
    given = [*args, *(None,) * (place - len(args))]
    reduction = given[place] if len(given) > place else kwargs.get("reduction", 1)
    operands = [value for value in args if isinstance(value, Value)]
    axes, states = r.joined(*(value.axes for value in operands))
    if packet is aten.binary_cross_entropy and any(state is not State.EDGE for held in states for state in held):
        raise r.no(f"{node.target} of rows that only fill up may be infinite")
    axes = stated(axes, [State.EDGE if all(state is State.EDGE for state in held) else State.LOOSE for held in states])
    rest = given[place + 1 :]
    each = Value(r.emit(node.target, *given[:place], 0, *rest, **{k: v for k, v in kwargs.items() if k != "reduction"}), axes, node.meta["val"].dtype)
    if reduction == 0:
        return each
    whole = aten.mean.default if reduction == 1 else aten.sum.default
    proxy = Like(whole, node)
    return total(r, proxy, (each,), {})  # type: ignore[arg-type]
