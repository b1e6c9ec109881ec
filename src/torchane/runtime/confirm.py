"""Numbers that look wrong, and whose fault that is: the model's, or the device's that computed them.

    a run ──► outputs scanned ──► infinite, NaN, or zeros throughout ──► Device.confirm ──► the device erred: right numbers are there now
                                                                                      └──► they are what the program gives

An infinity is else taken for an overflow, which a smaller scale heals, and zeros for numbers that fp16 has no digits for.
"""

from collections.abc import Sequence

from torchane import native
from torchane.runtime.device import Buffer, Device, LoadedProgram

#: Of one surface: the largest magnitude, and how many numbers are not finite, are zero, and are there.
Scan = tuple[float, int, int, int]


def confirmed(device: Device, loaded: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer], scans: Sequence[Scan]) -> Sequence[Scan]:
    """The scans of a run's outputs, of its numbers as they are once the device has put right what it got wrong."""
    if device.may_err and any(missing or zeros == count for _, missing, zeros, count in scans) and device.confirm(loaded, inputs, outputs):
        return [native.scan(buffer.look()) for buffer in outputs]
    return scans
