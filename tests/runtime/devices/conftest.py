"""The devices under contract: every one that this machine has. The tests are the same for all."""

from collections.abc import Iterator

import pytest

from torchane.errors import DeviceError
from torchane.runtime.ane import AneDevice, framework
from torchane.runtime.ane.cache import CompileCache
from torchane.runtime.device import Device
from torchane.runtime.devices import open_device


@pytest.fixture(params=["twin", "ane", "memory", "client", "e5"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """The last three: the `ane` device's routes to the stand-in for Apple's framework."""
    if request.param in framework.ROUTES:
        machine = request.getfixturevalue("machine")
        found = framework.opened([str(machine.path)])
        cache = CompileCache(request.getfixturevalue("tmp_path") / "cache", found.build)
        on_standin = AneDevice(found, request.param, cache=cache, patience=0.0, most_loaded=3)
        yield on_standin
        on_standin.close()
        assert not machine.loaded
        return
    try:
        opened = open_device(request.param)
    except DeviceError as why:
        if request.param == "twin":
            raise
        pytest.skip(f"needs macOS and a Neural Engine: {why}")
    yield opened
