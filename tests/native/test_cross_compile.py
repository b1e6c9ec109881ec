"""The bridge builds for macOS on Apple silicon: everything it links against is libSystem, the rest it finds at run time.

A compile and link check on any machine; nothing of it is executed. Compiler: Zig's clang, from PyPI, which carries
libSystem's stubs and libc++ and none of Apple's frameworks.
"""

import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
TARGET = ["c++", "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-target", "aarch64-macos.12.0", "-I", str(CSRC)]
LOAD_DYLIB, NO_UNDEFINED, ARM64 = 0xC, 0x1, 0x0100000C


@pytest.fixture(scope="module")
def zig():
    pytest.importorskip("ziglang", reason="needs ziglang from PyPI: pip install 'torchane[test]'")
    return [sys.executable, "-m", "ziglang", *TARGET]


def loaded_libraries(data: bytes) -> tuple[int, int, list[str]]:
    """The processor, the flags, and the libraries that a Mach-O file asks the loader for."""
    magic, processor, _, _, count, _, flags, _ = struct.unpack_from("<8I", data)
    assert magic == 0xFEEDFACF
    at, libraries = 32, []
    for _ in range(count):
        command, size = struct.unpack_from("<2I", data, at)
        if command == LOAD_DYLIB:
            start = at + struct.unpack_from("<I", data, at + 8)[0]
            libraries.append(data[start : data.index(b"\0", start)].decode())
        at += size
    return processor, flags, libraries


@pytest.mark.long
def test_the_bridge_links_against_libsystem_alone(zig, tmp_path):
    sources = [str(path) for path in sorted((CSRC / "apple").glob("*.cpp")) if path.name != "bindings.cpp"]
    made = tmp_path / "bridge.dylib"
    subprocess.run([*zig, "-shared", "-o", str(made), *sources], check=True)
    processor, flags, libraries = loaded_libraries(made.read_bytes())
    assert processor == ARM64
    assert flags & NO_UNDEFINED
    assert {name for name in libraries if "bridge" not in name} == {"/usr/lib/libSystem.B.dylib"}


@pytest.mark.long
def test_the_python_door_of_the_bridge_compiles(zig, tmp_path):
    nanobind = pytest.importorskip("nanobind")
    includes = ["-isystem", sysconfig.get_path("include"), "-isystem", nanobind.include_dir()]
    subprocess.run([*zig, *includes, "-c", str(CSRC / "apple" / "bindings.cpp"), "-o", str(tmp_path / "bindings.o")], check=True)
