"""Matrix products against torch in float64."""

import pytest
import torch
from harness import check
from hypothesis import given, settings
from hypothesis import strategies as st

from torchane.capture import backend

aten = torch.ops.aten


@given(*(st.integers(1, 6) for _ in range(4)))
@settings(max_examples=20, deadline=None)
def test_products(batch, m, k, n):
    x, y = torch.randn(batch, m, k), torch.randn(batch, k, n)
    check(aten.bmm.default, x, y)
    check(aten.mm.default, x[0], y[0])
    check(aten.mv.default, x[0], y[0, :, 0])
    check(aten.dot.default, x[0, 0], y[0, :, 0])


@pytest.mark.parametrize("factors", [(1, 1), (0, 1), (0.5, 2)])
def test_product_plus_something(factors):
    beta, alpha = factors
    x, y, bias = torch.randn(2, 3, 4), torch.randn(2, 4, 5), torch.randn(5)
    check(aten.addmm.default, bias, x[0], y[0], beta=beta, alpha=alpha)
    check(aten.baddbmm.default, bias.expand(2, 3, 5).contiguous(), x, y, beta=beta, alpha=alpha)
    check(aten.addmv.default, torch.randn(3), x[0], y[0, :, 0], beta=beta, alpha=alpha)


@pytest.mark.filterwarnings("ignore::torchane.errors.TorchaneWarning")  # the product is left to PyTorch, and said
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("module", [torch.nn.Linear(6, 4), torch.nn.Linear(6, 4, bias=False), torch.nn.Conv1d(3, 4, 2)], ids=["bias", "plain", "convolution"])
def test_factors_of_two_dtypes_are_refused_as_in_eager(module, dtype):
    x = torch.randn(2, 3, 6, dtype=dtype)
    torch._dynamo.reset()
    for call in module, torch.compile(module, backend=backend.ane, options={"device": "twin"}):
        with pytest.raises(RuntimeError, match="dtype|type"):
            call(x)
