"""`--device auto` where torchane doctor has not looked: a look of 20 seconds at most, kept for this build of the system.

    quick-look.json? ── of this build and this torchane ──► what it says
          └── none ──► doctor's quick checks, in a process of their own ──► kept ──► what they say

Three small programs by route, a convolution, a product and a softmax are right, and nothing crashed or hung: then the engine is taken, whose
programs are compared with the twin as they are used. What had no time says nothing: the twin is taken, and the next process looks again.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from torchane.errors import DeviceError, UsageError
from torchane.runtime.ane.cache import default_root
from torchane.runtime.ane.doctor import report
from torchane.runtime.ane.doctor.checks import all_checks
from torchane.runtime.ane.doctor.examine import QUICK_S, examine
from torchane.runtime.ane.doctor.record import write

RECORD = "quick-look.json"
#: Of this process, by build: for where nothing can be kept.
_looked: dict[str, report.Report] = {}


def choice(build: str, why: str, root: Path | None = None, look: Callable[[], report.Report] | None = None) -> tuple[str, str]:
    """What `auto` is, and the reason in one line. why: there is no record of doctor to go by."""
    found = _kept(build, root) or _looked.get(build)
    if found is None:
        print(f"{why[0].upper() + why[1:]}: a quick look at it for --device auto, {QUICK_S:.0f} s at most ...", file=sys.stderr, flush=True)
        found = _of(build, (look or _look)())
        keep(build, found, root)
    return _said(found, why)


def _look() -> report.Report:
    machine, findings, missing = examine(True, lambda name, finding: None)
    return report.made(True, missing, machine, findings)


def _of(build: str, found: report.Report) -> report.Report:
    """A child that crashed before it said which build it saw looked at this one all the same."""
    return replace(found, machine={**found.machine, "framework": {**found.machine.get("framework", {}), "build": build}})


def _said(found: report.Report, why: str) -> tuple[str, str]:
    names = [check.name for check in all_checks() if check.needed and check.quick]
    right = [name for name in names if found.findings.get(name, {}).get("ok") is True]
    if found.missing:
        return "twin", f"{why}, and a quick look found: {found.missing.rstrip('.')}"
    if found.failed:
        return "twin", f"{why}, and a quick look found it not right: {', '.join(found.failed)}"
    if len(right) < len(names):
        return "twin", f"{why}, and a quick look had no time for {', '.join(name for name in names if name not in right)}; torchane doctor takes longer"
    return "ane", f"{why}; a quick look found it right, torchane doctor looks at more"


def _kept(build: str, root: Path | None) -> report.Report | None:
    """None without one, and where it cannot be read: it is then made anew."""
    try:
        found = report.read((root or default_root()) / RECORD)
    except UsageError:
        return None
    return found if found.build == build and found.machine.get("torchane") == version("torchane") else None


def keep(build: str, found: report.Report, root: Path | None = None) -> None:
    """For later choices on this build; of `torchane doctor --quick` too, whoever has mended something and looks again."""
    _looked[build] = found
    if any("left out" in finding for finding in found.findings.values()):
        return
    try:
        write((root or default_root()) / RECORD, report.to_text(found))
    except DeviceError:
        pass  # the next process looks again; the compile cache will say what is wrong with the folder
