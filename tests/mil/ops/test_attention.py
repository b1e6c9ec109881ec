"""scaled_dot_product_attention, against PyTorch in float64 and coremltools."""

import numpy as np
import pytest
import torch
from second_opinion import assert_agrees_with_coremltools, ours

from torchane.errors import CompileError
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, INT32, TensorType

RNG = np.random.default_rng(8)
Q, K, V = (RNG.normal(size=(2, 3, length, size)).astype(np.float32) for length, size in ((4, 8), (5, 8), (5, 6)))
ADDED, ALLOWED = RNG.normal(size=(3, 4, 5)).astype(np.float32), np.tri(4, 5, dtype=bool)
NAME = "scaled_dot_product_attention"
CASES = [
    (NAME, {"query": Q, "key": K, "value": V} | mask) for mask in ({}, {"attn_mask": ADDED}, {"attn_mask": ALLOWED})
]


@pytest.mark.parametrize(("op", "args"), CASES)
def test_agrees_with_coremltools(op, args):
    assert_agrees_with_coremltools(op, args, rtol=1e-5)


@pytest.mark.parametrize("mask", [None, ADDED, ALLOWED])
def test_agrees_with_torch(mask):
    _, (value,) = ours(NAME, query=Q, key=K, value=V, attn_mask=mask)
    wide = [torch.tensor(array, dtype=torch.float64) for array in (Q, K, V)]
    torch_mask = None if mask is None else torch.tensor(mask, dtype=None if mask.dtype == bool else torch.float64)
    wanted = torch.nn.functional.scaled_dot_product_attention(*wide, attn_mask=torch_mask)
    np.testing.assert_allclose(value, wanted.numpy(), 1e-6, 1e-6)


def test_multiply_adds():
    args = {"query": TensorType(FP16, Q.shape), "key": TensorType(FP16, K.shape), "value": TensorType(FP16, V.shape)}
    assert KINDS[NAME].macs(args) == 2 * 3 * 4 * 5 * (8 + 6)


QT, KT, VT = (TensorType(FP16, array.shape) for array in (Q, K, V))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"query": QT, "key": VT, "value": VT}, "do not meet"),
        (
            {"query": QT, "key": KT, "value": KT, "attn_mask": TensorType(INT32, (4, 5))},
            "attn_mask is .*bools or floats",
        ),
        ({"query": QT, "key": KT, "value": KT, "attn_mask": TensorType(FP16, (5, 5))}, "do not broadcast"),
        ({"query": QT, "key": KT, "value": KT, "attn_mask": TensorType(FP16, (2, 2, 3, 4, 5))}, "does not broadcast"),
        ({"query": QT, "key": KT, "value": KT, "scale": 0.5}, "unexpected keyword argument 'scale'"),
    ],
)
def test_refuses(args, message):
    with pytest.raises(CompileError, match=f"{NAME}: .*{message}"):
        KINDS[NAME].infer(args)
