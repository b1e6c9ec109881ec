"""A report of doctor as data: kept for this machine, written for others, compared.

It holds what the machine and its software are and what was found; no user name, path, serial number or UUID: paths are cut
from every text before it is kept.
"""

import getpass
import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torchane import native
from torchane.errors import UsageError
from torchane.runtime.ane.doctor.checks import all_checks
from torchane.runtime.ane.doctor.doubts import DOUBT

FORM = 1
#: Where the record of this machine lies, below the cache's root.
RECORD = "doctor.json"

_PATH = re.compile(r"(?:/[\w.@+~-]+){2,}/?")
_UUID = re.compile(r"\b[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\b")


@dataclass(frozen=True)
class Report:
    """missing: why there is no engine, "" if there is. findings: by check."""

    form: int
    quick: bool
    missing: str
    machine: dict[str, Any] = field(default_factory=dict)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def route(self) -> str:
        return str(self.findings.get("first light", {}).get("route", ""))

    @property
    def build(self) -> str:
        return str(self.machine.get("framework", {}).get("build", ""))

    @property
    def failed(self) -> list[str]:
        """Needed checks that did not pass, and everything that crashed or hung but for what torchane does not write."""
        needed = {check.name for check in all_checks() if check.needed}

        def counts(name: str, found: dict[str, Any]) -> bool:
            return name in needed or (("crashed" in found or "hung" in found) and not name.startswith(DOUBT))

        return sorted(name for name, found in self.findings.items() if found.get("ok") is False and counts(name, found))

    @property
    def works(self) -> bool:
        """The engine may be used without being asked for: a full look, and nothing needed failed."""
        needed = {check.name for check in all_checks() if check.needed}
        return not self.missing and bool(self.route) and not self.failed and all(self.findings.get(name, {}).get("ok") for name in needed)


def made(quick: bool, missing: str, framework: dict[str, Any], findings: dict[str, dict[str, Any]]) -> Report:
    return _scrubbed(Report(FORM, quick, missing, {**_machine(), "framework": framework}, findings))


def read(path: Path) -> Report:
    """Raises UsageError for what is no report, or another version's."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: the report cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no report of torchane doctor: {error}.") from error
    if not isinstance(found, dict) or "form" not in found or "findings" not in found:
        raise UsageError(f"{path} is no report of torchane doctor.")
    if found["form"] != FORM:
        machine = found.get("machine")
        by = f" (torchane {machine['torchane']})" if isinstance(machine, dict) and isinstance(machine.get("torchane"), str) else ""
        raise UsageError(
            f"{path} is a report of form {found['form']!r:.40}{by}, and this version of torchane, {version('torchane')}, reads form {FORM}. "
            "Let both machines run torchane doctor of one version."
        )
    try:
        report = Report(**found)
    except TypeError as error:
        raise UsageError(f"{path} is no report of torchane doctor: {error}.") from error
    if wrong := _malformed(report):
        raise UsageError(f"{path} is no report of torchane doctor: {wrong}.")
    return report


def _malformed(report: Report) -> str:
    """What in it is of another type than it should be; "" if nothing is."""
    if not isinstance(report.quick, bool) or not isinstance(report.missing, str):
        return "quick must be true or false, and missing a text"
    if not isinstance(report.machine, dict) or not isinstance(report.machine.get("framework", {}), dict):
        return "machine and its framework must be objects"
    if not isinstance(report.findings, dict) or not all(isinstance(found, dict) for found in report.findings.values()):
        return "findings must be an object of objects"
    return ""


def to_text(report: Report) -> str:
    return json.dumps(asdict(report), indent=1, sort_keys=True)


def chip_name(brand: str | None = None) -> str:
    """Of this Mac, as chips/published names machines: m4max; "" elsewhere. brand: what sysctl says, where it is known."""
    said = _brand() if brand is None else brand
    return said.removeprefix("Apple ").replace(" ", "").lower() if said.startswith("Apple ") else ""


def system_release() -> str:
    """Of macOS, or of another system's kernel."""
    return platform.mac_ver()[0] or platform.release()


def _brand() -> str:
    return _said("sysctl", "-n", "machdep.cpu.brand_string") if platform.system() == "Darwin" else ""


def _machine() -> dict[str, Any]:
    """What this machine is, as far as any process may know it."""
    return {
        "system": platform.system(), "release": system_release(), "architecture": platform.machine(),
        "chip": _brand(),
        "model": _said("sysctl", "-n", "hw.model") if platform.system() == "Darwin" else "",
        "processors": os.cpu_count(), "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "power": _power(), "python": platform.python_version(), "torch": version("torch"), "torchane": version("torchane"),
        "twin": {"instruction set": native.get_isa(), "threads": native.get_threads()},
    }  # fmt: skip


def _power() -> list[str]:
    """Lines of pmset that say what the machine draws from and which mode is on."""
    lines = (_said("pmset", "-g", "batt") + "\n" + _said("pmset", "-g")).splitlines() if platform.system() == "Darwin" else []
    return [line.strip() for line in lines if re.search(r"drawing from|powermode|lowpowermode", line)]


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _scrubbed(report: Report) -> Report:
    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {clean(key): clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        return _without_names(value) if isinstance(value, str) else value

    return Report(**clean(asdict(report)))


def _without_names(text: str) -> str:
    text = _UUID.sub("<uuid>", text)
    text = _PATH.sub(lambda found: "<path>/" + found.group().rstrip("/").rsplit("/", 1)[1], text)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        return text
    return re.sub(rf"\b{re.escape(user)}\b", "<user>", text) if len(user) > 2 and user != "root" else text
