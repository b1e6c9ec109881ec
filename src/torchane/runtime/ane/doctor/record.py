"""What doctor found on this machine, kept for those who decide by it.

    doctor.json         the report      --device auto: may the engine be used?     wrong_ops: what programs do without
                                        --chip of this machine: what was found wrong and right, in place of others' reports
    measurements.json   three rates     torchane plan: in place of what was fitted to others' figures
"""

import json
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from torchane import chips
from torchane.chips.points import machines
from torchane.errors import DeviceError, TorchaneWarning, UsageError
from torchane.plan import Measured, read_measurements
from torchane.plan.constants import RECORD_FORMAT, RECORD_VERSION
from torchane.runtime.ane.cache import default_root
from torchane.runtime.ane.doctor.doubts import DOUBT
from torchane.runtime.ane.doctor.measure import OFF
from torchane.runtime.ane.doctor.report import RECORD, Report, chip_name, read, system_release, to_text

MEASUREMENTS = "measurements.json"
Kept = TypeVar("Kept")


def keep(report: Report, root: Path | None = None) -> None:
    """Raises DeviceError where the folder cannot be written."""
    folder = root or default_root()
    write(folder / RECORD, to_text(report))
    found = measured(report)
    if found is not None:
        given = {name: value for name, value in asdict(found).items() if value is not None}
        write(folder / MEASUREMENTS, json.dumps({"format": RECORD_FORMAT, "version": RECORD_VERSION, **given}, indent=1))


def write(target: Path, text: str) -> None:
    """Raises DeviceError where the folder cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = target.with_suffix(f".{os.getpid()}")
        part.write_text(text, encoding="utf-8")
        part.replace(target)
    except OSError as error:
        raise DeviceError(f"{target}: doctor's record cannot be kept: {error.strerror}. Let TORCHANE_CACHE name another folder.") from error


def has_looked(build: str, root: Path | None = None) -> bool:
    """Whether there is a record of doctor's of this build, to go by."""
    try:
        return read((root or default_root()) / RECORD).build == build
    except UsageError:
        return False


def why_not(build: str, root: Path | None = None) -> str:
    """Why the engine is not to be used on this build without being asked for; "" if it is."""
    target = (root or default_root()) / RECORD
    if not target.is_file():
        return "torchane doctor has not looked at this Mac's Neural Engine yet"
    try:
        report = read(target)
    except UsageError as error:
        return f"torchane doctor has to look again: {str(error).rstrip('.')}"
    if report.build != build:
        return f"torchane doctor looked at build {report.build}, and this is {build}; run it again"
    return "" if report.works else f"torchane doctor found this Mac's Neural Engine not right: {', '.join(report.failed) or 'checks are missing'}"


def _kept(root: Path | None) -> Report | None:
    """What doctor has left here; None without it. A record that cannot be read is told."""
    return _left(RECORD, read, root, "found", "what others report counts")


def _left(name: str, reader: Callable[[Path], Kept], root: Path | None, verb: str, instead: str) -> Kept | None:
    """A file of doctor's in the cache; None without it, and where it cannot be read, which is told."""
    target = (root or default_root()) / name
    if not target.is_file():
        return None
    try:
        return reader(target)
    except UsageError as error:
        warnings.warn(
            f"What torchane doctor {verb} on this machine is not used: {error} Until torchane doctor has run again, {instead}.",
            TorchaneWarning, stacklevel=4,
        )  # fmt: skip
        return None


def wrong_ops(build: str, root: Path | None = None) -> dict[str, str]:
    """The ops that doctor found wrong or refused on this build, and how; none without a record of it."""
    report = _kept(root)
    return _wrong(report) if report is not None and report.build == build else {}


def op_steps(build: str, root: Path | None = None) -> dict[str, float]:
    """By op, how far off doctor found those that are right on this build, in steps of fp16: what the comparison with the twin allows for."""
    report = _kept(root)
    if report is None or report.build != build:
        return {}
    right = {name.removeprefix("op "): found.get(OFF) for name, found in report.findings.items() if name.startswith("op ") and found.get("ok") is True}
    return {name: float(steps) for name, steps in right.items() if isinstance(steps, int | float) and 0 <= steps < math.inf}


def wrong_on(chip: str, root: Path | None = None) -> dict[str, str]:
    """The same for a chip that is asked for by its name or a machine's, where this machine is one of it."""
    report = _of_chip(chip, root)
    return _wrong(report) if report is not None else {}


def probed(chip: str, root: Path | None = None) -> chips.Chip:
    """The chip of that name, or of a machine's; where this machine is one, as doctor found it. For programs that are brought: ops beyond
    what torchane writes count as taken where their small program was right. Raises UsageError for a name that is neither."""
    known, report = chips.of_machine(chip), _of_chip(chip, root)
    if report is None:
        return known
    return chips.probed(known, _wrong(report), _right(report), f"torchane doctor, on this {report.machine['chip']}, build {report.build}")


def _of_chip(chip: str, root: Path | None) -> Report | None:
    """The record, where it is of this chip and of the system as it is now: another release is another framework."""
    report = _kept(root)
    if report is None or report.machine.get("release") != system_release():
        return None
    looked_at = machines().get(chip_name(str(report.machine.get("chip", ""))))
    return report if looked_at is not None and looked_at.chip == chips.of_machine(chip).name else None


def _wrong(report: Report) -> dict[str, str]:
    bad = {name: found for name, found in report.findings.items() if name.startswith("op ") and found.get("ok") is False}
    return {name.removeprefix("op "): _said(found) for name, found in bad.items()}


def _right(report: Report) -> dict[str, str]:
    """Of the doubtful ops, not of their forms."""
    good = (name for name, found in report.findings.items() if name.startswith(DOUBT) and "," not in name and found.get("ok") is True)
    return {name.removeprefix(DOUBT): "a small program with it is right" for name in good}


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


def kept_measurements(root: Path | None = None) -> Measured | None:
    """What doctor has left for the planner; None without it. A file that cannot be read is told."""
    return _left(MEASUREMENTS, read_measurements, root, "measured", "published figures count")
