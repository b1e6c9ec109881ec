"""Masks against torch: exact where numbers are chosen, -3e4 where they are masked out."""

import math

import numpy as np
import pytest
import torch
from harness import check, run_rule

aten = torch.ops.aten
X = torch.linspace(-2, 2, 12).reshape(3, 4)
Y = X.flip(1) * 3
MASK = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])


def test_where_chooses_exactly():
    check(aten.where.self, MASK, X, Y, tolerance=0.0)
    check(aten.where.self, MASK[:, :1], X, Y[0], tolerance=0.0)


@pytest.mark.parametrize("value", [0, 1, 0.5, -3])
def test_where_with_a_number(value):
    scalar = torch.tensor(float(value))
    check(aten.where.self, MASK, X, scalar, tolerance=0.0)
    check(aten.where.self, MASK, scalar, X, tolerance=0.0)
    check(aten.masked_fill.Scalar, X, MASK, value, tolerance=0.0)
    check(aten.masked_fill.Scalar, X, MASK[:1], value, tolerance=0.0)


@pytest.mark.parametrize("low", [-math.inf, torch.finfo(torch.float32).min, -1e9, -65504.0])
def test_masked_scores_are_one_low_number(low):
    (filled,) = run_rule(aten.masked_fill.Scalar, (X, MASK, low), fp16=True)
    (chosen,) = run_rule(aten.where.ScalarOther, (~MASK, X, low), fp16=True)
    wanted = np.where(MASK.numpy(), np.float16(-3e4 if low == -math.inf else -1e4), X.half().numpy())
    assert np.array_equal(filled, wanted) and np.array_equal(chosen, wanted)


def test_mask_from_two_numbers_is_zero_or_one_low_number():
    (found,) = run_rule(aten.where.Scalar, (MASK, 0.0, -math.inf), fp16=True)
    assert np.array_equal(found, np.where(MASK.numpy(), 0.0, -3e4))


def test_softmax_after_the_mask_is_torchs():
    (scores,) = run_rule(aten.masked_fill.Scalar, (X * 100, ~MASK, -math.inf), fp16=True)
    (found,) = run_rule(aten._softmax.default, (torch.tensor(scores), -1, False), fp16=True)
    wanted = torch.softmax((X * 100).half().double().masked_fill(~MASK, -math.inf), -1)
    kept = MASK.any(-1)
    assert np.abs(found - wanted.numpy())[kept.numpy()].max() < 4 * 2**-11


@pytest.mark.parametrize("name", ["gt", "ge", "lt", "le", "eq", "ne"])
def test_comparisons_give_zero_and_one(name):
    packet = getattr(aten, name)
    check(packet.Scalar, X, 0, tolerance=0.0)
    check(packet.Tensor, X, torch.where(MASK, X, Y), tolerance=0.0)


def test_logic_on_masks():
    other = MASK.flip(0)
    for target in (aten.logical_and.default, aten.bitwise_and.Tensor, aten.logical_or.default, aten.bitwise_or.Tensor):
        check(target, MASK, other, tolerance=0.0)
    check(aten.logical_not.default, MASK, tolerance=0.0)


def test_triangles():
    check(aten.tril.default, X, -1, tolerance=0.0)
    check(aten.triu.default, X, 1, tolerance=0.0)
