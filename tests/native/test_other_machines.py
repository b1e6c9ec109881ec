"""The portable kernels elsewhere: run for arm64 Linux under emulation, compiled for macOS on arm64.

Nothing here runs on a Mac: what is built for it is compiled and linked, no more.
"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECK = Path(__file__).with_name("kernel_check.cpp")
FLAGS = ["-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}", "-DTORCHANE_ISA=base", "-pthread"]
#: All but the door to Python and what only x86-64 has.
SOURCES = [
    path
    for path in sorted([*(ROOT / "csrc").glob("*.cpp"), *(ROOT / "csrc" / "isa").glob("*.cpp")])
    if path.name not in ("module.cpp", "arrays.cpp", "matmul_amx.cpp")
]


def build(compiler: list[str], target: Path) -> None:
    done = subprocess.run([*compiler, *FLAGS, *map(str, SOURCES), str(CHECK), "-o", str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_the_portable_kernels_agree_on_this_machine(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (c++)")
    build([compiler], tmp_path / "check")
    assert subprocess.run([tmp_path / "check"], capture_output=True, text=True, check=False).stdout == "all kernels agree\n"


@pytest.mark.long
def test_the_portable_kernels_agree_on_arm64(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64-static")
    if compiler is None or emulator is None:
        pytest.skip("no arm64 compiler or emulator: apt-get install g++-aarch64-linux-gnu qemu-user-static")
    build([compiler, "-static"], tmp_path / "check")
    assert subprocess.run([emulator, tmp_path / "check"], capture_output=True, text=True, check=False).stdout == "all kernels agree\n"


@pytest.mark.long
def test_the_portable_kernels_compile_for_macos_on_arm64(tmp_path: Path) -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no compiler for macOS: pip install ziglang")
    build([sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-macos.12.0"], tmp_path / "check")
    assert (tmp_path / "check").read_bytes()[:4] == bytes.fromhex("cffaedfe")  # Mach-O, 64 bits
