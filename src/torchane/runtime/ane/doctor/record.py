"""What doctor found on this machine, kept for those who decide by it.

    doctor.json         the report      --device auto: may the engine be used?     wrong_ops: what programs do without
    measurements.json   three rates     torchane plan: in place of what was fitted to others' figures
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from torchane.chips.points import machines
from torchane.errors import DeviceError, UsageError
from torchane.plan import Measured
from torchane.plan.constants import RECORD_FORMAT, RECORD_VERSION
from torchane.runtime.ane.cache import default_root
from torchane.runtime.ane.doctor.report import RECORD, Report, chip_name, read, to_text

MEASUREMENTS = "measurements.json"


def keep(report: Report, root: Path | None = None) -> None:
    """Raises DeviceError where the folder cannot be written."""
    folder = root or default_root()
    _write(folder / RECORD, to_text(report))
    found = measured(report)
    if found is not None:
        given = {name: value for name, value in asdict(found).items() if value is not None}
        _write(folder / MEASUREMENTS, json.dumps({"format": RECORD_FORMAT, "version": RECORD_VERSION, **given}, indent=1))


def _write(target: Path, text: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = target.with_suffix(f".{os.getpid()}")
        part.write_text(text, encoding="utf-8")
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


def wrong_ops(build: str, root: Path | None = None) -> dict[str, str]:
    """The ops that doctor found wrong or refused on this build, and how; none without a record of it."""
    try:
        report = read((root or default_root()) / RECORD)
    except UsageError:
        return {}
    bad = {name: found for name, found in report.findings.items() if name.startswith("op ") and found.get("ok") is False}
    return {name.removeprefix("op "): _said(found) for name, found in bad.items()} if report.build == build else {}


def _said(found: dict[str, object]) -> str:
    if "error" in found:
        return f"refused, {found['error']}"
    ended = next((f"it {word}" for word in ("crashed", "hung") if word in found), "")
    return ended or f"{found.get('steps from engine')} steps of fp16 from the twin"


def measured(report: Report) -> Measured | None:
    """What the planner takes of it; None where the machine is none that it knows, or nothing was timed."""
    name = chip_name(str(report.machine.get("chip", "")))
    dispatch_us = report.findings.get("time of a dispatch", {}).get("median us")
    if name not in machines() or not dispatch_us:
        return None
    surfaces, weights = (report.findings.get(check, {}).get("GB/s") for check in ("time of surfaces", "time of weights"))
    return Measured(
        name, str(report.machine.get("release", "")), dispatch_us * 1e-6,
        surfaces * 1e9 if surfaces else None, weights * 1e9 if weights else None,
    )  # fmt: skip


def measurements(root: Path | None = None) -> Path | None:
    """The file for `plan.read_measurements`, where doctor has left one."""
    target = (root or default_root()) / MEASUREMENTS
    return target if target.is_file() else None
