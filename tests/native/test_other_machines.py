"""The portable kernels elsewhere: run for arm64 Linux under emulation, compiled for macOS on arm64.

Nothing here runs on a Mac: what is built for it is compiled and linked, no more.
"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import recorded_plan

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


def build_check(compiler: list[str], check: str, target: Path, bridge: bool = False) -> None:
    sources = [*SOURCES, *(path for path in sorted((ROOT / "csrc" / "apple").glob("*.cpp")) if bridge and path.name != "bindings.cpp")]
    command = [*compiler, *FLAGS, *map(str, sources), str(CHECK.with_name(check)), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def arm64() -> list[str]:
    """A compiler for arm64 Linux, and that programs of it run here."""
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("no emulator of arm64: apt-get install qemu-user-static")
    if compiler := shutil.which("aarch64-linux-gnu-g++"):
        return [compiler, "-static"]
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no compiler for arm64: pip install ziglang")
    return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-static"]


def run_on_arm64(program: Path, *arguments: Path) -> str:
    done = subprocess.run(["qemu-aarch64-static", program, *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.long
def test_the_portable_kernels_agree_on_arm64(tmp_path: Path, arm64: list[str]) -> None:
    build(arm64, tmp_path / "check")
    assert run_on_arm64(tmp_path / "check") == "all kernels agree\n"


@pytest.mark.long
def test_the_bridge_refuses_by_name_on_arm64(tmp_path: Path, arm64: list[str]) -> None:
    build_check(arm64, "bridge_check.cpp", tmp_path / "check", bridge=True)
    assert run_on_arm64(tmp_path / "check") == "the bridge refuses by name\n"


@pytest.mark.long
def test_a_recorded_training_step_runs_without_python(tmp_path: Path, monkeypatch, evidence) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (c++)")
    runs = recorded_plan.record(tmp_path / "plan", monkeypatch)
    build_check([compiler], "plan_check.cpp", tmp_path / "check")
    done = subprocess.run([tmp_path / "check", tmp_path / "plan"], capture_output=True, text=True, check=False)
    evidence("a recorded training step by the portable kernels", done.stdout.strip())
    assert done.stdout.startswith(f"{runs} runs, ") and "FAILED" not in done.stdout


@pytest.mark.long
def test_a_recorded_training_step_runs_on_arm64(tmp_path: Path, arm64: list[str], monkeypatch, evidence) -> None:
    """Forward and backward of a small network, recorded here: every number is there within two roundings."""
    runs = recorded_plan.record(tmp_path / "plan", monkeypatch)
    build_check(arm64, "plan_check.cpp", tmp_path / "check")
    said = run_on_arm64(tmp_path / "check", tmp_path / "plan")
    evidence("a recorded training step on arm64", said.strip())
    assert said.startswith(f"{runs} runs, ") and "FAILED" not in said


@pytest.mark.long
def test_the_portable_kernels_compile_for_macos_on_arm64(tmp_path: Path) -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no compiler for macOS: pip install ziglang")
    build([sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-macos.12.0"], tmp_path / "check")
    assert (tmp_path / "check").read_bytes()[:4] == bytes.fromhex("cffaedfe")  # Mach-O, 64 bits
