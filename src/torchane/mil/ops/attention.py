"""Attention as one op.

Source: coremltools, mil/ops/defs/iOS18/transformers.py. The op scales by 1/sqrt(E) itself and has no scale argument.
"""

import math

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import broadcast, fits, require_float, same_dtype
from torchane.mil.types import BOOL, TensorType

scaled_dot_product_attention = OpKind("scaled_dot_product_attention", operands=("query", "key", "value", "attn_mask"))


@scaled_dot_product_attention.infers
def _(query: TensorType, key: TensorType, value: TensorType, attn_mask: TensorType | None = None) -> TensorType:
    """softmax(Q K^T / sqrt(E) + mask) V: query (*B, L, E), key (*B, S, E), value (*B, S, V) -> (*B, L, V).
    attn_mask broadcasts to (*B, L, S): bools (False is masked out) or floats that are added."""
    name = "scaled_dot_product_attention"
    require_float(name, query=query, key=key, value=value)
    same_dtype(name, query=query, key=key, value=value)
    if (
        not query.rank == key.rank == value.rank >= 3
        or not fits(query.shape[:-2], key.shape[:-2])
        or not fits(query.shape[:-2], value.shape[:-2])
        or not fits(query.shape[-1:], key.shape[-1:])
        or not fits(key.shape[-2:-1], value.shape[-2:-1])
    ):
        raise CompileError(
            f"{name}: query {query}, key {key} and value {value} do not meet. They are (*B, L, E), (*B, S, E) "
            "and (*B, S, V), with at least one batch axis."
        )
    if attn_mask is not None:
        if attn_mask.dtype != BOOL and not attn_mask.dtype.is_float:
            raise CompileError(f"{name}: attn_mask is {attn_mask} and must hold bools or floats.")
        scores = (*query.shape[:-1], key.shape[-2])
        if not fits(broadcast(name, TensorType(query.dtype, scores), attn_mask), scores):
            raise CompileError(f"{name}: attn_mask {attn_mask} does not broadcast to the scores, {scores}.")
    return TensorType(query.dtype, (*query.shape[:-1], value.shape[-1]))


@scaled_dot_product_attention.evaluates
def _(query: np.ndarray, key: np.ndarray, value: np.ndarray, attn_mask: np.ndarray | None = None) -> np.ndarray:
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = np.where(attn_mask, scores, -np.inf) if attn_mask.dtype == np.bool_ else scores + attn_mask
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value


@scaled_dot_product_attention.costs
def _(query: TensorType, key: TensorType, value: TensorType, attn_mask: TensorType | None = None) -> int:
    return math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
