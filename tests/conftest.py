"""Fixtures that several test folders share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real files that lies beside a developer's checkout; the package never needs it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data beside the checkout ({folder.name} of {folder.parent.name} is absent)")
    return folder


#: Skips that CI accepts: what no Linux machine has.
ACCEPTED_SKIPS = ("needs macOS",)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where TORCHANE_NO_SKIPS is set (CI), a skipped test fails unless no machine of CI's kind could run it."""
    report = yield
    if report.skipped and os.environ.get("TORCHANE_NO_SKIPS") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(accepted in reason for accepted in ACCEPTED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped, and CI requires it: {reason}"
    return report
