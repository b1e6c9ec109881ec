"""Softmax and log-softmax with their gradients.

_safe_softmax differs from softmax in rows that are -inf throughout, where torch writes zeros (attention over nothing: a
padded query). Programs hold -3e4 instead of -inf, and such a row is known by its maximum. Where the scores have no mask,
or a constant one that leaves something in every row, the two are one.

A softmax's gradient y (g - sum(g y)) takes from g whatever all of a row has in common, which leaves few digits of a g that fp16 has
rounded. In attention g is dy v^T, and what all values have in common is in all of its row: so the values are centred before that
product, g = dy (v - mean(v))^T, which changes nothing but what is rounded.
"""

import math
from collections.abc import Sequence

import torch
from torch.fx import Node

from torchane.abi.numbers import EXCLUDED_BELOW
from torchane.capture.rules import common
from torchane.capture.rules.registry import Value, lowers, values
from torchane.mil.build import Builder
from torchane.mil.ir import Literal, Op, Var

aten = torch.ops.aten


@lowers(aten._softmax.default)
def softmax(b: Builder, x: Value, dim: int, half_to_float: bool) -> Value:
    if not x.shape:
        return common.filled((), 1, common.dtype_of(x))
    return b.softmax(x=x, axis=common.axis_of(dim, len(x.shape)))


@lowers(aten._safe_softmax.default)
def safe_softmax(b: Builder, x: Value, dim: int, dtype: object = None) -> Value:
    result = softmax(b, x, dim, False)
    if not x.shape or not _may_be_excluded(b, x):
        return result
    top = b.reduce_max(x=x, axes=(common.axis_of(dim, len(x.shape)),), keep_dims=True)
    seen = common.positive(b, b.add(x=top, y=common.number(-EXCLUDED_BELOW, common.dtype_of(x))))
    return b.mul(x=result, y=seen)


#: Ops that only move what they are given.
_MOVES = ("reshape", "transpose", "expand_dims", "squeeze", "identity")


def _may_be_excluded(b: Builder, x: Value) -> bool:
    """A row may be EXCLUDED throughout: a mask of run time, or a constant one with such a row, was added to it."""
    if isinstance(x, Literal):
        return bool((x.value < EXCLUDED_BELOW).any())
    made = _maker(b, x)
    if made is None:
        return True  # scores from outside, mask and all
    if made.kind.name in _MOVES:
        return _may_be_excluded(b, made.args["x"])
    if made.kind.name != "add":
        return made.kind.name not in ("matmul", "mul", "real_div")
    terms = made.args["x"], made.args["y"]
    constant = next((term for term in terms if isinstance(term, Literal)), None)
    if constant is None:
        return True
    hidden = constant.value < EXCLUDED_BELOW
    other = terms[0] if terms[1] is constant else terms[1]
    return bool(hidden.all(axis=-1).any() if constant.shape else hidden) or _may_be_excluded(b, other)


@lowers(aten._softmax_backward_data.default)
def softmax_backward(b: Builder, grad: Value, output: Value, dim: int, input_dtype: object) -> Value:
    """y * (g - sum(g * y))."""
    if not output.shape:
        return common.filled((), 0, common.dtype_of(output))
    axis = common.axis_of(dim, len(output.shape))
    grad = _without_what_rows_share(b, grad, axis)
    weighted = common.summed(b, b.mul(x=grad, y=output), (axis,))
    return b.mul(x=output, y=b.sub(x=grad, y=weighted))


def _without_what_rows_share(b: Builder, grad: Value, axis: int) -> Value:
    """A product whose factor is centred along `axis`, a number for each row off; anything else as it is."""
    moves: list[tuple[str, Sequence[int]]] = []
    x, at = grad, axis
    while (made := _maker(b, x)) is not None and made.kind.name in ("reshape", "transpose"):
        before: Value = made.args["x"]  # type: ignore[assignment]
        if made.kind.name == "transpose":
            perm = [int(i) % len(x.shape) for i in made.args["perm"].value]  # type: ignore[union-attr]
            moves.append(("transpose", perm))
            at = perm[at]
        else:
            moves.append(("reshape", common.sizes(x)))
            same = _same_axis(common.sizes(before), common.sizes(x), at)
            if same is None:
                return grad
            at = same
        x = before
    result = _centred_product(b, made, at - len(x.shape)) if made is not None and made.kind.name == "matmul" else None
    if result is None:
        return grad
    for kind, how in reversed(moves):
        result = common.permuted(b, result, how) if kind == "transpose" else common.reshaped(b, result, how)
    return result


def _same_axis(before: Sequence[int], after: Sequence[int], at: int) -> int | None:
    """Which axis of a tensor is axis `at` once it is reshaped; None where that is made of others."""
    outer = math.prod(after[:at])
    return next((i for i, size in enumerate(before) if size == after[at] and math.prod(before[:i]) == outer), None)


def _centred_product(b: Builder, product: Op, from_end: int) -> Value | None:
    """The product again, the factor that has its axis `from_end` centred along that; None where there is none, or a constant."""
    if from_end < -2:
        return None
    name, turned = ("y", "transpose_y") if from_end == -1 else ("x", "transpose_x")
    factor, flag = product.args[name], product.args.get(turned)
    if not isinstance(factor, Var) or len(factor.shape) < 2:
        return None
    is_turned = isinstance(flag, Literal) and bool(flag.value)
    along = len(factor.shape) + (-3 - from_end if is_turned else from_end)
    centred = b.sub(x=factor, y=common.mean(b, factor, (along,)))
    result: Value = b.matmul(**{**product.args, name: centred})
    return result


def _maker(b: Builder, x: Value) -> Op | None:
    return next((op for op in b.ops if x in op.outputs), None)


def _sum_fits(node: Node) -> str | None:
    x, dim = values(node, "self", "dim")
    return common.why_sum_of_exponentials_overflows(x.meta["val"].shape, dim)


@lowers(aten._log_softmax.default, needs=("log",), when=_sum_fits)
def log_softmax(b: Builder, x: Value, dim: int, half_to_float: bool) -> Value:
    """(x - max) - log(sum(exp(x - max)))."""
    if not x.shape:
        return common.filled((), 0, common.dtype_of(x))
    axes = (common.axis_of(dim, len(x.shape)),)
    shifted = b.sub(x=x, y=b.reduce_max(x=x, axes=axes, keep_dims=True))
    return b.sub(x=shifted, y=b.log(x=common.summed(b, b.exp(x=shifted), axes), epsilon=0.0))


@lowers(aten._log_softmax_backward_data.default)
def log_softmax_backward(b: Builder, grad: Value, output: Value, dim: int, input_dtype: object) -> Value:
    """g - exp(y) * sum(g)."""
    if not output.shape:
        return common.filled((), 0, common.dtype_of(output))
    total = common.summed(b, grad, (common.axis_of(dim, len(output.shape)),))
    return b.sub(x=grad, y=b.mul(x=b.exp(x=output), y=total))
