"""softmax and the norms, against coremltools and PyTorch in float64."""

import numpy as np
import pytest
import torch
from second_opinion import assert_agrees_with_coremltools, ours

from torchane.errors import CompileError
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, INT32, TensorType

RNG = np.random.default_rng(4)
X = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
MEAN, SCALE, SHIFT = (RNG.normal(size=3).astype(np.float32) for _ in range(3))
VARIANCE = RNG.random(3).astype(np.float32)
INNER = RNG.normal(size=(4, 5)).astype(np.float32)
CASES = [
    ("softmax", {"x": X}),
    ("softmax", {"x": X, "axis": 1}),
    ("layer_norm", {"x": X, "axes": (-1,)}),
    ("layer_norm", {"x": X, "axes": (2, 3), "gamma": INNER, "beta": INNER + 1, "epsilon": 1e-3}),
    ("l2_norm", {"x": X}),
    ("l2_norm", {"x": X[0], "epsilon": 0.5}),
]
functional = torch.nn.functional
BY_TORCH = [
    (
        "batch_norm",
        {"mean": MEAN, "variance": VARIANCE, "gamma": SCALE, "beta": SHIFT, "epsilon": 0.25},
        lambda x, m, v, g, b: functional.batch_norm(x, m, v, g, b, eps=0.25),
    ),
    (
        "instance_norm",
        {"gamma": SCALE, "beta": SHIFT, "epsilon": 0.25},
        lambda x, g, b: functional.instance_norm(x, weight=g, bias=b, eps=0.25),
    ),
    ("local_response_norm", {"size": 2, "alpha": 0.5, "beta": 0.75, "k": 2.0}, lambda x: functional.local_response_norm(x, 2, 0.5, 0.75, 2.0)),
    ("local_response_norm", {"size": 3, "alpha": 0.5}, lambda x: functional.local_response_norm(x, 3, 0.5)),
    ("layer_norm", {"axes": (1, 2, 3), "epsilon": 0.25}, lambda x: functional.layer_norm(x, x.shape[1:], eps=0.25)),
]  # fmt: skip


@pytest.mark.parametrize(("op", "args"), CASES)
def test_agrees_with_coremltools(op, args):
    assert_agrees_with_coremltools(op, args, rtol=1e-5)


@pytest.mark.parametrize(("op", "args", "by_torch"), BY_TORCH)
def test_agrees_with_torch(op, args, by_torch):
    types, (value,) = ours(op, x=X, **args)
    arrays = [torch.tensor(a, dtype=torch.float64) for a in (X, *args.values()) if isinstance(a, np.ndarray)]
    assert types == (TensorType(types[0].dtype, X.shape),)
    np.testing.assert_allclose(value, by_torch(*arrays).numpy(), 1e-6, 1e-6)


def test_softmax_of_the_largest_halves_is_finite():
    _, (value,) = ours("softmax", x=np.array([65504, 65504, -65504], np.float16))
    assert value.tolist() == [0.5, 0.5, 0]


def test_the_default_epsilon_is_rounded_to_the_type_of_x():
    """1e-6 is 1.0133e-06 in fp16, a subnormal: a program that wrote it would hold that."""
    x = np.full((1, 1, 1), 2.0**-10, np.float16)
    _, (value,) = ours("l2_norm", x=x)
    assert value == np.float16(2.0**-10 / np.sqrt(2.0**-20 + float(np.float16(1e-6))))


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("softmax", {"x": TensorType(FP16, (2,)), "axis": 1}, "softmax: axis 1 for a tensor of rank 1"),
        ("softmax", {"x": TensorType(INT32, (2,))}, "softmax: .*must hold floats"),
        (
            "layer_norm",
            {"x": TensorType(FP16, (2, 3)), "axes": (1,), "gamma": TensorType(FP16, (2,))},
            r"layer_norm: gamma is .*shape \[3\]",
        ),
        ("l2_norm", {"x": TensorType(FP16, (2, 3))}, "l2_norm: .*last three axes"),
        ("instance_norm", {"x": TensorType(FP16, (2, 3))}, "instance_norm: .*rank 3 or 4"),
        ("local_response_norm", {"x": TensorType(FP16, (2, 3, 1)), "size": 0}, "local_response_norm: size 0"),
        (
            "batch_norm",
            {"x": TensorType(FP16, (1, 3, 2)), "mean": TensorType(FP16, (2,)), "variance": TensorType(FP16, (3,))},
            r"batch_norm: mean is .*shape \[3\]",
        ),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
