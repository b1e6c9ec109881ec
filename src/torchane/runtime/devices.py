"""The devices of this machine by name."""

import platform
import threading

from torchane.errors import MissingDeviceError, UsageError
from torchane.runtime.device import Device
from torchane.runtime.twin import TwinDevice

NAMES = ("auto", "twin", "ane")

_open: dict[str, Device] = {}
_lock = threading.Lock()


def open_device(name: str, arithmetic: str = "exact") -> Device:
    """The device, opened once per process; `auto` is the engine where it can be used, else the twin.

    arithmetic: of the twin, "exact" or "engine"; a real engine has its own.
    Raises UsageError for a name that is not one, MissingDeviceError where the device is not to be had.
    """
    if name not in NAMES:
        raise UsageError(f"Unknown device {name!r}. Known: {', '.join(NAMES)}.")
    if name == "ane":
        raise MissingDeviceError(
            f"There is no Neural Engine that torchane can use here: this is {platform.system()} on {platform.machine()}, "
            "and this version has no bridge to Apple's framework yet. Take the twin, which runs the same programs: --device twin, or options={'device': 'twin'}."
        )
    with _lock:
        key = f"twin, {arithmetic}"
        if key not in _open:
            _open[key] = TwinDevice(arithmetic=arithmetic)
        return _open[key]
