"""bf16 and the 8-bit floats, against PyTorch's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchane.mil.formats import narrowed, widened
from torchane.mil.types import FP16, FP32, INT32, DType

THEIRS = {DType.BF16: torch.bfloat16, DType.FP8E4M3FN: torch.float8_e4m3fn, DType.FP8E5M2: torch.float8_e5m2}


@pytest.mark.parametrize("dtype", THEIRS)
def test_every_pattern_has_the_value_that_torch_gives_it(dtype):
    bits = np.arange(1 << dtype.bits).astype(dtype.numpy)
    unsigned = torch.uint16 if dtype.bits == 16 else torch.uint8
    wanted = torch.tensor(bits, dtype=unsigned).view(THEIRS[dtype]).to(torch.float64).numpy()
    np.testing.assert_array_equal(widened(bits, dtype), wanted)


@pytest.mark.parametrize("dtype", THEIRS)
def test_every_number_comes_back_to_its_pattern(dtype):
    bits = np.arange(1 << dtype.bits).astype(dtype.numpy)
    values = widened(bits, dtype)
    back = narrowed(values, dtype)
    np.testing.assert_array_equal(back[~np.isnan(values)], bits[~np.isnan(values)])
    assert np.isnan(widened(back, dtype)[np.isnan(values)]).all()


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_rounding_to_bf16_agrees_with_torch(value):
    wanted = torch.tensor(value, dtype=torch.float32).to(torch.bfloat16).to(torch.float64).item()
    assert widened(narrowed(np.array(value), DType.BF16), DType.BF16) == wanted


@pytest.mark.parametrize("dtype", [DType.FP8E4M3FN, DType.FP8E5M2])
@given(st.floats(-400, 400, width=32))
def test_rounding_to_8_bits_agrees_with_torch(dtype, value):
    wanted = torch.tensor(value, dtype=torch.float32).to(THEIRS[dtype]).to(torch.float64).item()
    assert widened(narrowed(np.array(value), dtype), dtype) == wanted


@pytest.mark.parametrize(
    ("dtype", "largest", "beyond"),
    [(DType.FP8E4M3FN, 448.0, np.nan), (DType.FP8E5M2, 57344.0, np.inf), (DType.BF16, 3.3895313892515355e38, np.inf)],
)
def test_what_is_too_large_becomes_infinite_or_nan(dtype, largest, beyond):
    given_back = widened(narrowed(np.array([largest, -largest, 2 * largest, np.inf]), dtype), dtype)
    np.testing.assert_array_equal(given_back, [largest, -largest, beyond, beyond])


def test_other_types_are_numpys_own():
    assert narrowed(np.array([1 + 2.0**-11]), FP16).tolist() == [1]
    assert widened(np.array([1, 2], np.int32), INT32).dtype == np.int32
    assert widened(np.array([1.5], np.float32), FP32).dtype == np.float64
