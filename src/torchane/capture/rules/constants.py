"""Tensors that say the same everywhere: they become Literals, not ops."""

from collections.abc import Sequence
from typing import Any

import torch

from torchane.capture.rules import common
from torchane.capture.rules.registry import Value, lowers
from torchane.mil.build import Builder
from torchane.mil.types import FP16

aten = torch.ops.aten


@lowers(aten.full.default)
def full(b: Builder, size: Sequence[int], fill_value: float, **_: Any) -> Value:
    return common.filled(size, fill_value, FP16)


@lowers(aten.scalar_tensor.default)
def scalar_tensor(b: Builder, value: float, **_: Any) -> Value:
    return common.filled((), value, FP16)


@lowers(aten.zeros.default)
def zeros(b: Builder, size: Sequence[int], **_: Any) -> Value:
    return common.filled(size, 0, FP16)


@lowers(aten.ones.default)
def ones(b: Builder, size: Sequence[int], **_: Any) -> Value:
    return common.filled(size, 1, FP16)


@lowers(aten.full_like.default)
def full_like(b: Builder, x: Value, fill_value: float, **_: Any) -> Value:
    return common.filled(common.sizes(x), fill_value, common.dtype_of(x))


@lowers(aten.fill.Scalar)
def fill(b: Builder, x: Value, value: float) -> Value:
    return full_like(b, x, value)


@lowers(aten.zeros_like.default)
def zeros_like(b: Builder, x: Value, **_: Any) -> Value:
    return full_like(b, x, 0)


@lowers(aten.ones_like.default)
def ones_like(b: Builder, x: Value, **_: Any) -> Value:
    return full_like(b, x, 1)


@lowers(aten.new_full.default)
def new_full(b: Builder, x: Value, size: Sequence[int], fill_value: float, **_: Any) -> Value:
    return common.filled(size, fill_value, common.dtype_of(x))


@lowers(aten.new_zeros.default)
def new_zeros(b: Builder, x: Value, size: Sequence[int], **_: Any) -> Value:
    return new_full(b, x, size, 0)


@lowers(aten.new_ones.default)
def new_ones(b: Builder, x: Value, size: Sequence[int], **_: Any) -> Value:
    return new_full(b, x, size, 1)
