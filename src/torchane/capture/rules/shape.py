"""Views and the ops that only name a value again: reshape, transpose, stretch.

A value has no strides here: what torch calls a view, a copy or a contiguous clone is the value itself.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from torchane.capture.rules import common
from torchane.capture.rules.registry import FLOATS, Value, lowers, values
from torchane.mil.build import Builder

aten = torch.ops.aten


def _stays_float(node: Node) -> str | None:
    (dtype,) = values(node, "dtype")
    return None if dtype is None or dtype in FLOATS else f"it casts to {dtype}"


@lowers(
    aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default,
    aten.contiguous.default, aten.resolve_conj.default,
)  # fmt: skip
def same(b: Builder, x: Value, **_: Any) -> Value:
    return x


@lowers(aten.copy.default)
def copy(b: Builder, x: Value, source: Value, non_blocking: bool = False) -> Value:
    """`source` in the shape of x, whose values are gone."""
    return common.broadcast_to(b, source, common.sizes(x))


@lowers(aten._to_copy.default, aten.to.dtype, masks=True, when=_stays_float)
def to_copy(b: Builder, x: Value, *_: Any, **__: Any) -> Value:
    """Every float of torch is one fp16 here, and a mask already is 0.0 and 1.0."""
    return x


@lowers(
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.view_copy.default,
    aten._reshape_alias.default,
)  # fmt: skip
def view(b: Builder, x: Value, shape: Sequence[int], stride: Sequence[int] | None = None) -> Value:
    return common.reshaped(b, x, shape)


@lowers(aten.unsqueeze.default)
def unsqueeze(b: Builder, x: Value, dim: int) -> Value:
    shape = list(common.sizes(x))
    shape.insert(dim % (len(shape) + 1), 1)
    return common.reshaped(b, x, shape)


@lowers(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def squeeze(b: Builder, x: Value, dim: int | Sequence[int] | None = None) -> Value:
    shape = common.sizes(x)
    named = () if dim == [] or dim == () else common.axes_of(dim, len(shape))
    return common.reshaped(b, x, [size for axis, size in enumerate(shape) if size != 1 or axis not in named])


@lowers(aten.permute.default)
def permute(b: Builder, x: Value, dims: Sequence[int]) -> Value:
    return common.permuted(b, x, dims)


@lowers(aten.transpose.int)
def transpose(b: Builder, x: Value, first: int, second: int) -> Value:
    return common.swapped(b, x, first, second)


@lowers(aten.t.default)
def t(b: Builder, x: Value) -> Value:
    return common.swapped(b, x, 0, 1) if len(x.shape) == 2 else x


@lowers(aten.expand.default)
def expand(b: Builder, x: Value, shape: Sequence[int], *, implicit: bool = False) -> Value:
    return common.broadcast_to(b, x, shape)


@lowers(aten.repeat.default)
def repeat(b: Builder, x: Value, repeats: Sequence[int]) -> Value:
    """Axis by axis: [before, 1, rest] times ones [1, r, 1] is the axis r times over."""
    x = common.reshaped(b, x, (1,) * (len(repeats) - len(x.shape)) + common.sizes(x))
    for axis, count in enumerate(repeats):
        if count != 1:
            shape = common.sizes(x)
            flat = common.reshaped(b, x, (math.prod(shape[:axis]), 1, math.prod(shape[axis:])))
            wide = common.broadcast_to(b, flat, (flat.shape[0], count, flat.shape[2]))
            x = common.reshaped(b, wide, (*shape[:axis], shape[axis] * count, *shape[axis + 1 :]))
    return x
