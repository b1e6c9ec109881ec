"""The wheel, installed by itself: PyTorch finds the backend without an import of torchane."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PROBE = """
import sys, torch
assert "torchane" not in sys.modules
model = torch.nn.Linear(64, 32)
compiled = torch.compile(model, backend="ane", options={"device": "twin"})
x = torch.randn(32, 64)
compiled(x).sum().backward()
expected = torch.nn.functional.linear(x, model.weight, model.bias)
assert (compiled(x) - expected).norm() / expected.norm() < 0.002
import torchane
print(torchane.__file__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the wheel in it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", folder, ROOT], check=True, timeout=600)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True, timeout=600)
    return target


def test_an_installed_wheel_is_found_by_torch_compile_without_an_import(installed: Path, tmp_path: Path) -> None:
    # -S and site by hand: the editable install of the checkout must not be what is found.
    packages = str(Path(os.path.dirname(pytest.__file__)).parent)
    code = f"import sys; sys.path[:0] = [{str(installed)!r}]; sys.path.append({packages!r})\n{PROBE}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.strip()).is_relative_to(installed)


def test_the_wheel_holds_the_data_files_of_chips(installed: Path) -> None:
    assert list((installed / "torchane" / "chips").rglob("portable.toml"))
