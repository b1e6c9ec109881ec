"""The package without its extension, and what it says of this machine."""

import os
import subprocess
import sys

import pytest

from torchane import native
from torchane.errors import DeviceError


def test_without_the_extension_the_first_use_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchane.native._native", None)
    monkeypatch.delitem(vars(native), "stage", raising=False)
    assert not native.is_built()
    with pytest.raises(DeviceError, match="native.stage needs .* `pip install"):
        _ = native.stage


def test_the_instruction_sets_begin_with_base_and_follow_the_processor() -> None:
    names, cpu = native.isas(), native.cpu_features()
    assert names[0] == "base"
    assert all(cpu[name] for name in names[1:])
    assert native.get_isa() in names


def _isa_with(value: str) -> subprocess.CompletedProcess[str]:
    code = "from torchane import native; print(native.get_isa())"
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, "TORCHANE_ISA": value}, capture_output=True, text=True, check=False)


def test_the_environment_chooses_the_instruction_set() -> None:
    assert [_isa_with(name).stdout.strip() for name in ("base", native.isas()[-1])] == ["base", native.isas()[-1]]


def test_an_instruction_set_that_is_not_there_is_refused_with_those_that_are() -> None:
    done = _isa_with("avx9")
    assert done.returncode != 0
    assert "TORCHANE_ISA is 'avx9', and on this processor the twin has kernels for base" in done.stderr


def test_modules_of_the_package_are_there_without_the_extension() -> None:
    code = "from torchane import native; native._EXTENSION = 'torchane.native.nothing'; from torchane.native import pages; print(pages.LINE_BYTES); native.set_threads(1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "64\n" and "native.set_threads needs torchane's compiled extension" in done.stderr
