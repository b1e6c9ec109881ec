"""The devices of this machine by name."""

import threading

from torchane.errors import MissingDeviceError, UsageError
from torchane.runtime.ane import AneDevice, first_light, framework
from torchane.runtime.ane.cache import CompileCache, default_root
from torchane.runtime.ane.doctor import quick_look, record
from torchane.runtime.device import Device
from torchane.runtime.twin import TwinDevice

NAMES = ("auto", "twin", "ane")

_open: dict[str, Device] = {}
_lock = threading.Lock()


def open_device(name: str, arithmetic: str = "exact") -> Device:
    """The device, opened once per process. `auto` is the engine where torchane doctor, or a quick look, has seen it compute, else the twin.

    arithmetic: of the twin, "exact" or "engine"; a real engine has its own.
    Raises UsageError for a name that is not one, MissingDeviceError where the device is not to be had.
    """
    if name not in NAMES:
        raise UsageError(f"Unknown device {name!r}. Known: {', '.join(NAMES)}.")
    if name == "auto":
        name = auto_choice()[0]
    key = "ane" if name == "ane" else f"twin, {arithmetic}"
    with _lock:
        if key not in _open:
            _open[key] = open_engine() if name == "ane" else TwinDevice(arithmetic=arithmetic)
        return _open[key]


def auto_choice() -> tuple[str, str]:
    """What `auto` is here, and why, in one line."""
    try:
        found = framework.find()
    except MissingDeviceError:
        return "twin", "there is no Neural Engine that torchane can use here"
    why_not = record.why_not(found.build)
    if why_not and not record.has_looked(found.build):
        return quick_look.choice(found.build, why_not)
    return ("twin", why_not) if why_not else ("ane", "torchane doctor has seen the Neural Engine of this Mac compute right")


def open_engine() -> AneDevice:
    """The Neural Engine, once a child process has seen it compute. Raises MissingDeviceError."""
    found = framework.find()
    root = default_root()
    light = first_light.require(found, root)
    cache = CompileCache(root, found.build)
    wrong, steps = record.wrong_ops(found.build), record.op_steps(found.build)
    return AneDevice(found, light.route, cache=cache, equal_surfaces=light.equal_surfaces, wrong_ops=wrong, op_steps=steps)
