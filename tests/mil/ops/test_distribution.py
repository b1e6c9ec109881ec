"""Random numbers, by their moments: no oracle has the numbers of Apple's generator."""

import numpy as np
import pytest
from second_opinion import ours, theirs

from torchane.errors import CompileError
from torchane.mil.ir import literal
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, FP32, INT32, TensorType

SHAPE = (40, 500)
N = 20_000
CASES = [(op, "moments") for op in ("random_uniform", "random_normal", "random_bernoulli", "random_categorical")]
DRAWN = [
    # op, arguments, mean, variance
    ("random_uniform", {"low": -1.0, "high": 3.0}, 1.0, 16 / 12),
    ("random_uniform", {}, 0.5, 1 / 12),
    ("random_normal", {"mean": 2.0, "stddev": 0.5}, 2.0, 0.25),
    ("random_normal", {}, 0.0, 1.0),
    ("random_bernoulli", {"prob": 0.25}, 0.25, 0.1875),
    ("random_bernoulli", {}, 0.5, 0.25),
]


@pytest.mark.parametrize(("op", "parameters", "mean", "variance"), DRAWN)
def test_moments(op, parameters, mean, variance):
    args = {key: literal(value, FP32) for key, value in parameters.items()}
    types, (value,) = ours(op, shape=SHAPE, seed=3, **args)
    assert types == theirs(op, shape=SHAPE, seed=3, **{key: np.float32(v) for key, v in parameters.items()})[0]
    assert abs(value.mean() - mean) < 5 * np.sqrt(variance / N)  # five standard deviations of a mean
    assert abs(value.var() - variance) < 0.05 * variance


@pytest.mark.parametrize("mode", ["probs", "logits"])
def test_categories_come_as_often_as_they_should(mode):
    shares = np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 0]], np.float32)
    with np.errstate(divide="ignore"):
        x = shares if mode == "probs" else np.log(shares)
    types, (value,) = ours("random_categorical", x=x, mode=mode, size=N, seed=4)
    assert types == (TensorType(FP32, (2, N)),)
    counts = np.stack([np.bincount(row.astype(int), minlength=3) for row in value]) / N
    assert np.abs(counts - shares).max() < 5 * 0.5 / np.sqrt(N)
    assert counts[1, 2] == 0


def test_a_seed_gives_the_same_numbers_and_none_gives_others():
    draw = lambda seed: ours("random_normal", shape=(4,), seed=seed)[1][0].tolist()
    assert draw(7) == draw(7) != draw(8)
    assert draw(-1) != draw(-1)


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("random_normal", {"shape": (0,)}, "random_normal: shape .*1 or more"),
        ("random_uniform", {"shape": (1,), "low": TensorType(FP16)}, "random_uniform: .*one element type"),
        ("random_bernoulli", {"shape": (1,), "prob": TensorType(INT32)}, "random_bernoulli: prob .*floats"),
        ("random_categorical", {"x": TensorType(FP16)}, "random_categorical: x is .*last axis"),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
