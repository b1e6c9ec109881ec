"""fitted.toml is what its constants give, and the fit gives those constants."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fit_cost_model.py"


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_file_states_the_errors_and_residuals_that_its_constants_have():
    assert "held_out" in run("--check")


@pytest.mark.long
def test_the_command_writes_the_file_again_to_the_byte():
    path = SCRIPT.parents[1] / "src" / "torchane" / "plan" / "fitted.toml"
    before = path.read_bytes()
    try:
        run()
        assert path.read_bytes() == before
    finally:
        path.write_bytes(before)
