"""The devices under contract: every one that this machine has. The tests are the same for all."""

from collections.abc import Iterator

import pytest

from torchane.errors import DeviceError
from torchane.runtime.device import Device
from torchane.runtime.devices import open_device


@pytest.fixture(params=["twin", "ane"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    try:
        opened = open_device(request.param)
    except DeviceError as why:
        if request.param == "twin":
            raise
        pytest.skip(f"needs macOS and a Neural Engine: {why}")
    yield opened
    opened.synchronize()
