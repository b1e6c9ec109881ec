"""Activations, against coremltools and PyTorch."""

import numpy as np
import pytest
import torch
from second_opinion import assert_agrees_with_coremltools, ours

from torchane.errors import CompileError
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, INT32, TensorType

X = np.linspace(-4, 4, 24).reshape(1, 3, 2, 4).astype(np.float32)
C = np.array([0.1, -0.5, 2.0], np.float32)
BOUNDS = {"alpha": 0.5, "beta": 1.25}
CASES = [
    *((op, {"x": X}) for op in ("relu", "relu6", "sigmoid", "softplus", "softsign")),
    *((op, {"x": X, "alpha": 0.3}) for op in ("elu", "leaky_relu", "thresholded_relu")),
    *((op, {"x": X} | BOUNDS) for op in ("clamped_relu", "linear_activation", "scaled_tanh", "sigmoid_hard")),
    *(("gelu", {"x": X, "mode": mode}) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")),
    ("gelu", {"x": X}),
    ("prelu", {"x": X, "alpha": C}),
    ("softplus_parametric", {"x": X, "alpha": C, "beta": np.abs(C)}),
]
BY_TORCH = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "softplus": torch.nn.functional.softplus,
    "elu": lambda x: torch.nn.functional.elu(x, 0.3),
    "prelu": lambda x: torch.nn.functional.prelu(x, torch.tensor(C, dtype=torch.float64)),
}


@pytest.mark.parametrize(("op", "args"), CASES)
def test_agrees_with_coremltools(op, args):
    # 1e-5: theirs is fp32 throughout, and takes differences of numbers near 1
    assert_agrees_with_coremltools(
        op, {key: np.copy(value) if key == "x" else value for key, value in args.items()}, rtol=1e-5
    )


@pytest.mark.parametrize("op", BY_TORCH)
def test_agrees_with_torch(op):
    more = {"elu": {"alpha": 0.3}, "prelu": {"alpha": C}}.get(op, {})
    _, (value,) = ours(op, x=X, **more)
    # 2**-24: one rounding to fp32; alpha 0.3 is not a number of fp32
    wanted = BY_TORCH[op](torch.tensor(X, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(value, wanted, 2.0**-23)


@pytest.mark.parametrize("op", ["sigmoid", "silu", "softplus", "tanh", "gelu"])
def test_the_ends_of_fp16_overflow_nowhere(op):
    _, (value,) = ours(op, x=np.array([-65504, 65504], np.float16))
    assert np.isfinite(value).all()


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("relu", {"x": TensorType(INT32)}, "relu: x is .*must hold floats"),
        ("gelu", {"x": TensorType(FP16), "mode": "FAST"}, "gelu: mode is 'FAST'; it must be one of EXACT"),
        (
            "prelu",
            {"x": TensorType(FP16, (1, 3)), "alpha": TensorType(FP16, (3,))},
            "prelu: x is .*rank 2.*rank 3 to 5",
        ),
        (
            "prelu",
            {"x": TensorType(FP16, (1, 3, 2)), "alpha": TensorType(FP16, (4,))},
            r"prelu: alpha is .*shape \[3\]",
        ),
        ("elu", {"x": TensorType(FP16)}, "elu: missing a required argument: 'alpha'"),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
