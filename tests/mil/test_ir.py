"""The IR's values."""

import numpy as np

from torchane.mil.ir import Literal
from torchane.mil.types import FP16, TensorType


def test_a_literal_of_no_numbers_has_a_hash():
    empty = np.zeros((0, 3), np.float16)
    first, second = (Literal(TensorType(FP16, empty.shape), empty) for _ in range(2))
    assert first == second and hash(first) == hash(second)
