"""What `import torchane` gives: three names and a version."""

import subprocess
import sys
from importlib import metadata

import pytest

import torchane


def test_the_version_is_the_installed_one() -> None:
    assert torchane.__version__ == metadata.version("torchane")


def test_dir_shows_what_is_there_and_nothing_else() -> None:
    assert dir(torchane) == ["Explanation", "__version__", "audit", "explain"]
    assert all(hasattr(torchane, name) for name in dir(torchane))
    with pytest.raises(AttributeError, match="no attribute 'Any'"):
        _ = torchane.Any


def test_importing_it_loads_nothing_large() -> None:
    script = "import sys, torchane; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
