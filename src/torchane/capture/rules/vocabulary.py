"""A slice of a vocabulary: scores that never leave their program, or leave it once, to be kept (vocabulary_ops.py)."""

import math

import torch

import torchane.capture.vocabulary_ops as ops
from torchane.capture.rules import common
from torchane.capture.rules.registry import Value, lowers
from torchane.mil.build import Builder
from torchane.mil.ir import Var


@lowers(torch.ops.torchane.vocabulary_scores.default)
def vocabulary_scores(b: Builder, x: Value, weight: Value, code: Value) -> tuple[Value, Value, Value]:
    """Largest, sum of exponentials, and the target's score."""
    return _read(b, _scores(b, x, weight), code)


@lowers(torch.ops.torchane.vocabulary_kept_scores.default)
def vocabulary_kept_scores(b: Builder, x: Value, weight: Value, code: Value) -> tuple[Value, Value, Value, Value]:
    """These, and the scores."""
    scores = _scores(b, x, weight)
    return *_read(b, scores, code), scores


@lowers(torch.ops.torchane.vocabulary_gradient.default)
def vocabulary_gradient(b: Builder, grad: Value, x: Value, weight: Value, code: Value, taken: Value, rest: Value) -> Value:
    """(exp(score - taken), at the target -rest) times the row's gradient."""
    return vocabulary_gradient_of(b, grad, _scores(b, x, weight), code, taken, rest)


@lowers(torch.ops.torchane.vocabulary_gradient_of.default)
def vocabulary_gradient_of(b: Builder, grad: Value, scores: Value, code: Value, taken: Value, rest: Value) -> Value:
    is_target, _, others = _targets(b, scores, code)
    exponentials = b.exp(x=b.sub(x=others, y=taken))
    return b.mul(x=b.sub(x=exponentials, y=b.mul(x=is_target, y=rest)), y=grad)


def _read(b: Builder, scores: Value, code: Value) -> tuple[Value, Value, Value]:
    _, gap, others = _targets(b, scores, code)
    top = b.reduce_max(x=others, axes=(1,), keep_dims=True)
    total = common.summed(b, b.exp(x=b.sub(x=others, y=top)), (1,))
    elsewhere = b.sub(x=common.number(ops.LEFT_OUT, common.dtype_of(scores)), y=gap)  # 0 at the target: its score keeps its digits
    return top, total, b.reduce_max(x=b.add(x=scores, y=elsewhere), axes=(1,), keep_dims=True)


def _scores(b: Builder, x: Value, weight: Value) -> Var:
    """(T, V)."""
    least = common.number(-math.inf, common.dtype_of(x))
    return b.maximum(x=b.matmul(x=x, y=weight, transpose_x=False, transpose_y=True), y=least)  # range control gives true numbers to it


def _targets(b: Builder, scores: Value, code: Value) -> tuple[Var, Var, Var]:
    """1 at the target and 0 elsewhere; LEFT_OUT there; and the scores with the target left out."""
    dtype = common.dtype_of(scores)
    codes = common.constant(ops.code_matrix(common.sizes(scores)[1]).numpy(), dtype)
    alike = b.matmul(x=code, y=codes, transpose_x=False, transpose_y=False)
    is_target = b.maximum(x=b.add(x=alike, y=common.number(1 - ops.CODE, dtype)), y=common.number(0, dtype))
    gap = b.mul(x=is_target, y=common.number(ops.LEFT_OUT, dtype))
    return is_target, gap, b.add(x=scores, y=gap)
