"""The portable kernels elsewhere: run for arm64 Linux under emulation, compiled for macOS on arm64.

Nothing here runs on a Mac: what is built for it is compiled, no more (test_cross_compile.py links the bridge).
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import recorded_plan
from elsewhere import BRIDGE, KERNELS, link, objects, symbols

HERE = Path(__file__).parent

#: Names that libc++ and the C++ runtime define, which every macOS has beside libSystem; and one that the linker makes.
OF_CPP = re.compile(r"___dso_handle$|__Z(N|NK|TIN?|TSN?|TVN?|GVN?)?St|__ZTV?I?N10__cxxabiv1|__Z(nw|na|dl|da)|___cxa_|___gxx_personality_v0|__Unwind_")

Build = Callable[[str], Path]


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Build:
    """Builds a check for this machine."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (c++)")
    return builder([compiler], tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module")
def arm64(tmp_path_factory) -> Build:
    """Builds a check for arm64 Linux, programs of which run here."""
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("no emulator of arm64: apt-get install qemu-user-static")
    folder = tmp_path_factory.mktemp("arm64")
    if compiler := shutil.which("aarch64-linux-gnu-g++"):
        return builder([compiler, "-static"], folder)
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no compiler for arm64: apt-get install g++-aarch64-linux-gnu, or pip install ziglang")
    return builder([sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-static"], folder)


def builder(compiler: list[str], folder: Path) -> Build:
    """What every check is made of is compiled once."""
    common = objects(compiler, [*KERNELS, *BRIDGE], folder)

    def build(check: str) -> Path:
        return link(compiler, [*common, *objects(compiler, [HERE / check], folder)], folder / Path(check).stem)

    return build


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def sanitized(request: pytest.FixtureRequest, tmp_path_factory) -> Build:
    """Builds a check for this machine that ends where memory is misused, an operation is undefined, or threads race."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (c++)")
    return builder([compiler, f"-fsanitize={request.param}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"], tmp_path_factory.mktemp("sanitized"))


def run_on_arm64(program: Path, *arguments: Path) -> str:
    done = subprocess.run(["qemu-aarch64-static", program, *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.long
def test_the_portable_kernels_agree_on_this_machine(here: Build) -> None:
    assert subprocess.run([here("kernel_check.cpp")], capture_output=True, text=True, check=False).stdout == "all kernels agree\n"


@pytest.mark.long
def test_sanitizers_find_nothing_in_kernels_and_a_recorded_step(tmp_path: Path, sanitized: Build, monkeypatch) -> None:
    done = subprocess.run([sanitized("kernel_check.cpp")], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("all kernels agree\n", "", 0)
    recorded_plan.record(tmp_path / "plan", monkeypatch)
    done = subprocess.run([sanitized("plan_check.cpp"), tmp_path / "plan"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr


@pytest.mark.long
def test_the_portable_kernels_agree_on_arm64(arm64: Build) -> None:
    assert run_on_arm64(arm64("kernel_check.cpp")) == "all kernels agree, those of bf16 too\n"


@pytest.mark.long
def test_the_bridge_refuses_by_name_on_arm64(arm64: Build) -> None:
    assert run_on_arm64(arm64("bridge_check.cpp")) == "the bridge refuses by name\n"


@pytest.mark.long
def test_a_recorded_training_step_runs_without_python(tmp_path: Path, here: Build, monkeypatch, evidence) -> None:
    runs = recorded_plan.record(tmp_path / "plan", monkeypatch)
    done = subprocess.run([here("plan_check.cpp"), tmp_path / "plan"], capture_output=True, text=True, check=False)
    evidence("a recorded training step by the portable kernels", done.stdout.strip())
    assert done.stdout.startswith(f"{runs} runs, ") and "FAILED" not in done.stdout


@pytest.mark.long
def test_a_recorded_training_step_runs_on_arm64(tmp_path: Path, arm64: Build, monkeypatch, evidence) -> None:
    """Forward and backward of a small network, recorded here: every number is there within two roundings."""
    runs = recorded_plan.record(tmp_path / "plan", monkeypatch)
    said = run_on_arm64(arm64("plan_check.cpp"), tmp_path / "plan")
    evidence("a recorded training step on arm64", said.strip())
    assert said.startswith(f"{runs} runs, ") and "FAILED" not in said


@pytest.mark.long
def test_kernels_and_bridge_compile_for_macos_and_want_nothing_beyond_libsystem(tmp_path: Path) -> None:
    ziglang = pytest.importorskip("ziglang", reason="no compiler for macOS: pip install ziglang")
    compiler = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-macos.12.0", "-fno-sanitize=undefined"]  # which -O0 turns on
    bridge = tmp_path / "bridge.cpp"  # in one piece: most of the time goes into the same headers
    bridge.write_text("".join(f'#include "{path}"\n' for path in BRIDGE))
    found = [symbols(path.read_bytes()) for path in objects(compiler, [*KERNELS, bridge], tmp_path / "macos")]
    wanted = set().union(*(names for _, names in found)) - set().union(*(names for names, _ in found))
    stub = Path(ziglang.__file__).parent / "lib" / "libc" / "darwin" / "libSystem.tbd"
    of_system = set(re.findall(r"[\w$.]+", stub.read_text()))
    assert {"_dlopen", "_dlsym"} <= wanted  # it is by these that the bridge finds Apple's classes
    assert sorted(name for name in wanted - of_system if not OF_CPP.match(name)) == []
