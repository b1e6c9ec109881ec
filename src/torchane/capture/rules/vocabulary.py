"""A slice of a vocabulary: scores that never leave their program (vocabulary_ops.py)."""

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
    scores, _, gap, others = _scores(b, x, weight, code)
    top = b.reduce_max(x=others, axes=(1,), keep_dims=True)
    total = common.summed(b, b.exp(x=b.sub(x=others, y=top)), (1,))
    elsewhere = b.sub(x=common.number(ops.LEFT_OUT, common.dtype_of(scores)), y=gap)  # 0 at the target: its score keeps its digits
    return top, total, b.reduce_max(x=b.add(x=scores, y=elsewhere), axes=(1,), keep_dims=True)


@lowers(torch.ops.torchane.vocabulary_gradient.default)
def vocabulary_gradient(b: Builder, grad: Value, x: Value, weight: Value, code: Value, taken: Value, rest: Value) -> Value:
    """(exp(score - taken), at the target -rest) times the row's gradient."""
    _, is_target, _, others = _scores(b, x, weight, code)
    exponentials = b.exp(x=b.sub(x=others, y=taken))
    return b.mul(x=b.sub(x=exponentials, y=b.mul(x=is_target, y=rest)), y=grad)


def _scores(b: Builder, x: Value, weight: Value, code: Value) -> tuple[Var, Var, Var, Var]:
    """The scores (T, V); 1 at the target and 0 elsewhere; LEFT_OUT there; and the scores with the target left out."""
    dtype = common.dtype_of(x)
    least = common.number(-math.inf, dtype)
    scores = b.maximum(x=b.matmul(x=x, y=weight, transpose_x=False, transpose_y=True), y=least)  # range control gives true numbers to it
    codes = common.constant(ops.code_matrix(common.sizes(weight)[0]).numpy(), dtype)
    alike = b.matmul(x=code, y=codes, transpose_x=False, transpose_y=False)
    is_target = b.maximum(x=b.add(x=alike, y=common.number(1 - ops.CODE, dtype)), y=common.number(0, dtype))
    gap = b.mul(x=is_target, y=common.number(ops.LEFT_OUT, dtype))
    return scores, is_target, gap, b.add(x=scores, y=gap)
