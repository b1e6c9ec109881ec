"""Rules of ops that look rows up by an index, or write them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from torchane.capture.sizes.axes import Axis, State, Value, is_alike, is_padded, size_of, stated, with_state
from torchane.capture.sizes.rewrite import RULES, Like, Rewriter, rule

aten = torch.ops.aten


@rule(aten.embedding)
def embedding(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    table, index = args[:2]
    if is_padded(table.axes[0]):
        raise r.no("a look-up in a table whose size varies")
    if index.padded and len(args) > 3 and args[3]:  # scale_grad_by_freq
        raise r.no("a look-up whose gradient is divided by how often each row is looked up")
    _require_places(r, index)
    return Value(r.emit(node.target, *args, **kwargs), (*map(_found, index.axes), *table.axes[1:]), table.dtype)


def _require_places(r: Rewriter, index: Value) -> None:
    """Rows that only fill up are places that there are: copies of true ones, or zeros."""
    if any(factor.state is State.LOOSE for axis in index.axes for factor in axis if factor.is_padded):
        raise r.no("an index in rows that only fill up may be out of range")


@rule(aten.index_select)
def index_select(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, position, index = args
    _require_places(r, index)
    position %= len(x.axes)
    return Value(r.emit(node.target, x.node, position, index.node), x.axes, x.dtype).where(position, _found(index.axes[0] if index.axes else ()))


def _found(axis: Axis) -> Axis:
    """What a look-up gives: copies where the index has copies, else true rows that are no copies of the last."""
    return tuple(f if not f.is_padded or f.state is State.EDGE else type(f)(f.size, State.LOOSE) for f in axis)


@rule(aten.index, aten._unsafe_index)
def index_of(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, indices = args
    asked, joint, axes = _indexed(r, x, indices)
    return Value(r.emit(aten.index.Tensor, x.node, asked), axes, x.dtype)


def _indexed(r: Rewriter, x: Value, indices: Any) -> tuple[list[Any], tuple[Axis, ...], tuple[Axis, ...]]:
    """The indices with true rows' numbers, the axes of the indices together, and those of what is found."""
    given = [i for i, index in enumerate(indices) if index is not None]
    if any(index.dtype in (torch.bool, torch.uint8) for index in indices if index is not None):
        raise r.no("a selection by a mask of bools has a size that its values decide")
    asked: list[Any] = list(indices)
    for i in given:
        _require_places(r, indices[i])
        if is_padded(x.axes[i]):
            size = r.number(size_of(r_single(r, x.axes[i])))
            node = indices[i].node
            behind = r.emit(aten._to_copy.default, r.emit(aten.lt.Scalar, node, 0), dtype=torch.int64)
            asked[i] = r.emit(aten.add.Tensor, node, r.emit(aten.mul.Tensor, behind, size))
        else:
            asked[i] = indices[i].node
    joint, states = r.joined(*(indices[i].axes for i in given))
    joint = stated(joint, [State.EDGE if all(s is State.EDGE for s in held) else State.LOOSE for held in states])
    rest = [axis for i, axis in enumerate(x.axes) if i not in given]
    is_run = given == list(range(given[0], given[-1] + 1))
    first = given[0] if is_run else 0
    return asked, joint, (*rest[:first], *joint, *rest[first:])


def r_single(r: Rewriter, axis: Axis) -> Axis:
    r.single(axis)
    return axis


@rule(aten.gather)
def gather(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, position, index = args[:3]
    _require_places(r, index)
    position %= max(len(x.axes), 1)
    axes = list(index.axes)
    for i, axis in enumerate(index.axes):
        if i != position:
            if not is_alike(axis, x.axes[i]) and (is_padded(axis) or is_padded(x.axes[i])):
                raise r.no("gather: rows of the index are no rows of what it looks into")
            if is_padded(axis):
                states = [State.EDGE if a.state is b.state is State.EDGE else State.LOOSE for a, b in zip(axis, x.axes[i], strict=True) if a.is_padded]
                axes[i] = stated((axis,), states)[0]
    if index.axes:
        axes[position] = _found(axes[position])
    return Value(r.emit(node.target, *args, **kwargs), tuple(axes), x.dtype)


@rule(aten.index_add)
def index_add(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, position, index, source = args
    _require_places(r, index)
    position %= len(x.axes)
    if not is_alike(index.axes[0] if index.axes else (), source.axes[position]):
        raise r.no("index_add: rows of the index are no rows of what is added")
    if is_padded(source.axes[position]):
        source = r.zeroed(source, position)
    axes, states = r.joined(x.where(position, ()).axes, source.where(position, ()).axes)
    found = [held[0] if len(set(held)) == 1 else State.LOOSE for held in states]
    own = with_state(x.axes[position], State.LOOSE)
    return Value(r.emit(node.target, x.node, position, index.node, source.node, **kwargs), stated(axes, found), x.dtype).where(position, own)


@rule(aten.scatter_add)
def scatter_add(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, position, index, source = args
    _require_places(r, index)
    if not all(is_alike(a, b) for a, b in zip(index.axes, source.axes, strict=True)):
        raise r.no("scatter_add: rows of the index are no rows of what is added")
    source = r.zeroed(source, *source.padded)
    return Value(r.emit(node.target, x.node, position, index.node, source.node), tuple(with_state(axis, State.LOOSE) for axis in x.axes), x.dtype)


@rule(aten.index_put)
def index_put(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, indices, values = args[:3]
    adds = bool(args[3] if len(args) > 3 else kwargs.get("accumulate", False))
    if len(indices) == 1 and indices[0].dtype is torch.bool and not adds and not any(values.axes):  # x[mask] = 0
        value = Value(r.emit(aten.reshape.default, values.node, []), (), values.dtype)
        return RULES["pointwise"](r, Like(aten.where.self, node), (_behind(r, indices[0], x), value, x), {})  # type: ignore[arg-type]
    asked, joint, axes = _indexed(r, x, indices)
    if any(map(is_padded, joint)):
        values = _broadcast(r, values, axes)
    first = len(axes) - len(values.axes)
    rows = [i for i in values.padded if any(axes[i + first] is axis for axis in joint)]
    if adds:
        values = r.zeroed(values, *rows)
    elif any(map(is_padded, joint)):
        if any(f.state is not State.EDGE for axis in joint for f in axis if f.is_padded):
            raise r.no("an index in rows that only fill up may be another's place")
        values = _written_again(r, values, rows)
    made = r.emit(node.target, x.node, asked, values.node, adds)
    return Value(made, tuple(with_state(axis, State.LOOSE) for axis in x.axes), x.dtype)


def _broadcast(r: Rewriter, values: Value, axes: tuple[Axis, ...]) -> Value:
    """Over all that is written to, so that what one number gives to rows that only fill up can be told apart."""
    missing = len(axes) - len(values.axes)
    own = tuple(values.axes[i - missing] if i >= missing and values.axes[i - missing] else with_state(axis, State.EDGE) for i, axis in enumerate(axes))
    return Value(r.emit(aten.expand.default, values.node, r.shape(own)), own, values.dtype)


def _written_again(r: Rewriter, values: Value, rows: Sequence[int]) -> Value:
    """Rows that only fill up go where the last true one goes: they are its copies, and have no part in its gradient."""
    for position in rows:
        axis = values.axes[position]
        size = r.single(axis).size
        if axis[0].state is not State.EDGE:
            values = r.taken(values, position, r.rows(size), with_state(axis, State.EDGE))
        if values.dtype.is_floating_point:
            copies = r.emit(aten.detach.default, values.node)
            values = Value(r.emit(aten.where.self, r.mask(values, position), values.node, copies), values.axes, values.dtype)
    return values


@rule(aten.index_copy)
def index_copy(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    x, position, index, source = args
    position %= max(len(x.axes), 1)
    axis = index.axes[0] if index.axes else ()
    if not x.axes or not is_alike(axis, source.axes[position]) or any(f.state is not State.EDGE for f in axis if f.is_padded):
        raise r.no("index_copy: rows of the index are no rows of what is written")
    if is_padded(axis):
        source = _written_again(r, source, [position])
    axes, states = r.joined(x.where(position, ()).axes, source.where(position, ()).axes)
    found = [held[0] if len(set(held)) == 1 else State.LOOSE for held in states]
    own = with_state(x.axes[position], State.LOOSE)
    return Value(r.emit(node.target, x.node, position, index.node, source.node), stated(axes, found), x.dtype).where(position, own)


@rule(aten.scatter, aten.scatter_reduce)
def scatter(r: Rewriter, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """Along an axis of fixed size: each row alone."""
    x, position, index = args[:3]
    source = args[3] if isinstance(args[3], Value) else None
    position %= max(len(x.axes), 1)
    others = [value.where(position, ()).axes if value.axes else () for value in (x, index, source) if value is not None]
    if not x.axes or any(is_padded(value.axes[position]) for value in (x, index, source) if value is not None):
        raise r.no(f"{node.target} along an axis whose size varies")
    if any(not is_alike(a, b) for one in others for a, b in zip(one, others[0], strict=True) if is_padded(a) or is_padded(b)):
        raise r.no(f"{node.target}: rows of the index are no rows of what is written")
    _require_places(r, index)
    states = [[f.state for axis in one for f in axis if f.is_padded] for one in others]
    found = [State.EDGE if all(s is State.EDGE for s in held) else State.LOOSE for held in zip(*states, strict=True)]
    return Value(r.emit(node.target, *args, **kwargs), stated(x.axes, found), x.dtype)


def _behind(r: Rewriter, mask: Value, x: Value) -> Value:
    """With axes of 1 behind, so that it lies over the first axes of x."""
    missing = len(x.axes) - len(mask.axes)
    axes = (*mask.axes, *(() for _ in range(missing)))
    return mask if not missing else Value(r.emit(aten.reshape.default, mask.node, r.shape(axes)), axes, mask.dtype)
