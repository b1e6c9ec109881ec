import numpy as np
import pytest

from torchane import chips
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.passes.range_statistics import largest, write_statistics


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 5, 1, 1), (1, 7, 3, 32), (1, 8192, 2, 32), (1, 4099, 1, 2)])
@pytest.mark.parametrize("chip", ["portable", "m4"])
def test_the_largest_magnitude_of_any_shape(shape, chip):
    b = Builder()
    x = b.input("x", shape)
    program = b.program(largest(b, x, chips.load(chip)))
    array = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    array.flat[array.size // 2] = -9
    (found,) = evaluate(program, {"x": array}).values()
    assert found.shape == (1, 1, 1, 1) and found.item() == 9


def test_each_value_has_its_row_and_an_infinity_is_told_in_its_own_alone():
    b = Builder()
    x, y = b.input("x", (1, 2, 1, 32)), b.input("y", (1, 3, 1, 32))
    program = b.program(write_statistics(b, [x, y]))
    arrays = {"x": np.full((1, 2, 1, 32), -0.25, np.float16), "y": np.full((1, 3, 1, 32), 1e-3, np.float16)}
    (found,) = evaluate(program, arrays).values()
    assert found.shape == (1, 2, 1, 32)
    assert found[0, 0, 0, 0] == 0.25 and found[0, 1, 0, 31] == np.float16(1e-3)
    arrays["y"][0, 1, 0, 5] = np.inf
    (found,) = evaluate(program, arrays).values()
    assert found[0, 0, 0, 0] == 0.25 and found[0, 1, 0, 0] == 65504
