"""The examples of docs/mil.md, run where torch cannot be imported."""

import subprocess
import sys
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "mil.md"

#: `None` in sys.modules makes an import fail.
WITHOUT_TORCH = """
import doctest, sys
sys.modules["torch"] = None
found = doctest.testfile(sys.argv[1], module_relative=False)
assert "torchane.mil" in sys.modules
print(found.attempted, "examples,", found.failed, "failed")
sys.exit(bool(found.failed))
"""


def test_the_examples_of_the_document_run_without_torch():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, str(DOCUMENT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(done.stdout.split()[-4]) > 40, done.stdout


def test_what_the_issue_tracker_calls_the_interface_is_in_the_document():
    from torchane import mil

    text = DOCUMENT.read_text()
    for name in ("parse", "load", "to_text", "save", "check", "evaluate", "diff"):
        assert name in mil.__all__
        assert f"mil.{name}(" in text
