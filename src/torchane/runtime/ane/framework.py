"""Apple's libraries on this machine: opened by path, each route checked selector by selector before anything is sent.

    libobjc, Foundation, IOSurface, AppleNeuralEngine, Espresso ── native.apple.open ──► Framework(routes, info)

route    how a program reaches the engine                                   known to work, in public reports
memory   _ANEInMemoryModel, the default                                     M1 to M5, macOS 15 to 27
client   _ANEClient with a folder                                           three tools, no training loop
e5       Espresso's e5rt_* functions                                        M1, M2, M5, macOS 26.5, one author
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchane import native
from torchane.errors import AppleError, DeviceError, MissingDeviceError

ROUTES = ("memory", "client", "e5")

_FRAMEWORKS = "/System/Library/Frameworks"
_PRIVATE = "/System/Library/PrivateFrameworks"
LIBRARIES = (
    "/usr/lib/libobjc.A.dylib",
    f"{_FRAMEWORKS}/CoreFoundation.framework/CoreFoundation",
    f"{_FRAMEWORKS}/Foundation.framework/Foundation",
    f"{_FRAMEWORKS}/IOSurface.framework/IOSurface",
)
#: Each is needed by some routes only.
OPTIONAL_LIBRARIES = (
    f"{_PRIVATE}/AppleNeuralEngine.framework/AppleNeuralEngine",
    f"{_PRIVATE}/Espresso.framework/Espresso",
)

#: Every message about a missing engine ends with this.
TAKE_THE_TWIN = "Take the twin, which runs the same programs: --device twin, or options={'device': 'twin'}."


@dataclass(frozen=True)
class Framework:
    """What was found. routes: by name, empty where it can be used, else what it lacks. info: what the framework says of
    the machine, see native.apple.device_info."""

    routes: Mapping[str, str]
    info: Mapping[str, Any]

    @property
    def usable(self) -> tuple[str, ...]:
        return tuple(name for name in ROUTES if not self.routes[name])

    @property
    def build(self) -> str:
        """The build of the system, on which everything compiled depends."""
        return str(self.info.get("build") or platform.version())

    @property
    def architecture(self) -> str:
        """h13, h16g, ...; empty where the framework does not say."""
        return str(self.info.get("architecture", ""))


def find() -> Framework:
    """Opens Apple's libraries. Raises MissingDeviceError that says what is missing and what to do."""
    system, machine = platform.system(), platform.machine()
    if system != "Darwin":
        raise MissingDeviceError(
            f"There is no Neural Engine here: this is {system} on {machine}, and Apple's engine is in Macs with Apple silicon. {TAKE_THE_TWIN}"
        )
    if machine != "arm64":
        raise MissingDeviceError(
            f"There is no Neural Engine here: this Python runs on {machine}. An Intel Mac has none; on Apple silicon install a "
            f"Python for arm64. {TAKE_THE_TWIN}"
        )
    try:
        return opened(LIBRARIES, OPTIONAL_LIBRARIES)
    except AppleError as error:
        raise MissingDeviceError(f"Apple's libraries cannot be opened on {_system()}: {error}. {TAKE_THE_TWIN}") from error


def opened(libraries: Sequence[str], optional: Sequence[str] = ()) -> Framework:
    """What a set of libraries offers. Raises AppleError where one cannot be opened, MissingDeviceError without an engine."""
    here = list(libraries)
    native.apple.open(here)
    for path in optional:
        try:
            native.apple.open([*here, path])
        except AppleError:
            continue  # the routes that need it will say what they lack
        here.append(path)
    native.apple.open(here)
    routes = {name: _lacks(name) for name in ROUTES}
    info = native.apple.device_info()
    found = Framework(routes, info)
    if not found.usable:
        lacks = "; ".join(f"{name}: {why}" for name, why in routes.items())
        raise MissingDeviceError(
            f"Apple's framework on {_system()}, build {found.build}, is not the one that torchane knows. {lacks}. {TAKE_THE_TWIN}"
        )
    if info.get("has_engine") is False or info.get("is_virtual") is True:
        why = "a virtual machine, whose guest has no engine" if info.get("is_virtual") else "a machine without one"
        raise MissingDeviceError(f"There is no Neural Engine here: Apple's framework says that this is {why}. {TAKE_THE_TWIN}")
    return found


def _lacks(route: str) -> str:
    try:
        native.apple.check_route(route)
    except AppleError as error:
        return str(error)
    return ""


def _system() -> str:
    release = platform.mac_ver()[0]
    return f"macOS {release}" if release else platform.system()


def require_route(framework: Framework, route: str) -> None:
    """Raises DeviceError where a route cannot be used here."""
    if framework.routes.get(route, f"no route is called {route}"):
        raise DeviceError(f"the route {route!r} to the Neural Engine cannot be used: {framework.routes.get(route, 'it does not exist')}")
