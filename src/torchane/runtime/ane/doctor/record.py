"""What doctor found on this machine, kept for `--device auto`."""

import os
from pathlib import Path

from torchane.errors import DeviceError, UsageError
from torchane.runtime.ane.cache import default_root
from torchane.runtime.ane.doctor.report import RECORD, Report, read, to_text


def keep(report: Report, root: Path | None = None) -> None:
    """Raises DeviceError where the folder cannot be written."""
    target = (root or default_root()) / RECORD
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = target.with_suffix(f".{os.getpid()}")
        part.write_text(to_text(report), encoding="utf-8")
        part.replace(target)
    except OSError as error:
        raise DeviceError(f"{target}: doctor's record cannot be kept: {error.strerror}. Let TORCHANE_CACHE name another folder.") from error


def why_not(build: str, root: Path | None = None) -> str:
    """Why the engine is not to be used on this build without being asked for; "" if it is."""
    target = (root or default_root()) / RECORD
    if not target.is_file():
        return "torchane doctor has not looked at this Mac's Neural Engine yet"
    try:
        report = read(target)
    except UsageError:
        return "the record of torchane doctor is another version's; run it again"
    if report.build != build:
        return f"torchane doctor looked at build {report.build}, and this is {build}; run it again"
    return "" if report.works else f"torchane doctor found this Mac's Neural Engine not right: {', '.join(report.failed) or 'checks are missing'}"
