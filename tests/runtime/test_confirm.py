"""What is asked of a device whose numbers look wrong."""

import numpy as np
import pytest

from torchane import native
from torchane.mil.types import FP16, TensorType
from torchane.runtime.confirm import confirmed
from torchane.runtime.twin import TwinDevice


class Erring(TwinDevice):
    """One that puts 1 where it erred."""

    may_err = True
    asked = 0

    def confirm(self, program, inputs, outputs):
        self.asked += 1
        for buffer in outputs:
            buffer.array[...] = 1
        return True


@pytest.mark.parametrize(
    ("numbers", "asked"), [([1, 2, 0, 0], 0), ([1, np.inf, 0, 0], 1), ([1, np.nan, 2, 3], 1), ([0, 0, 0, 0], 1), ([6e-8, 0, 0, 0], 0)]
)
def test_infinities_nan_and_zeros_throughout_are_confirmed_and_read_again(numbers, asked):
    device = Erring()
    surface = device.allocate(TensorType(FP16, (1, 1, 1, 4)))
    surface.array[...] = numbers
    before = native.scan(surface.look())
    found = confirmed(device, None, [], [surface], [before])
    assert device.asked == asked
    assert found == ([(1.0, 0, 0, 4)] if asked else [before])


def test_a_device_that_cannot_err_is_not_asked():
    device = Erring()
    device.may_err = False
    scans = [(0.0, 0, 4, 4)]
    assert confirmed(device, None, [], [], scans) is scans and not device.asked
