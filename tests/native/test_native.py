"""The package without its extension, and what it says of this machine."""

import sys

import pytest

from torchane import native
from torchane.errors import DeviceError


def test_without_the_extension_the_first_use_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchane.native._native", None)
    assert not native.is_built()
    with pytest.raises(DeviceError, match="native.stage needs .* `pip install"):
        _ = native.stage


def test_the_instruction_sets_begin_with_base_and_follow_the_processor() -> None:
    names, cpu = native.isas(), native.cpu_features()
    assert names[0] == "base"
    assert all(cpu[name] for name in names[1:])
    assert native.get_isa() in names
