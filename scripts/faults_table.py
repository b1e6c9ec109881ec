"""Writes docs/faults.md: what becomes of a training run on the stand-in that meets each fault of the Neural Engine.

    python scripts/faults_table.py            strikes every fault (minutes), then writes the file
    python scripts/faults_table.py --check    fails where the file is not of the present table of faults

The table is tests/runtime/ane/faults.py, the tests are those of test_faults.py; their results are what is counted here.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "faults.md"
TESTS = "tests/runtime/ane/test_faults.py"
sys.path[:0] = [str(ROOT / "tests" / "apple"), str(ROOT / "tests" / "runtime" / "ane")]

from faults import ERRORS, FAULTS, REPLACED, RESUMED, SAME, Fault
from standin import COMPILER, CONNECTION, EXCEPTION, NIL, NO

from torchane.errors import AppleError
from torchane.runtime.ane import policies

KINDS = ("first forward", "first backward", "middle", "last")
BECOMES = {
    SAME: "the loss keeps its bits", ERRORS: "an error that names the program; the process can go on", REPLACED: "the loss keeps its bits, the user is told",
    RESUMED: "the process ends with an error that names the program; `torchane train` resumes",
}  # fmt: skip
HEAD = """# What becomes of a run that meets a fault of the engine

Written by `python scripts/faults_table.py` from `tests/runtime/ane/faults.py` and from what the tests found; do not edit it.

Public reports tell of these faults (who is who: `src/torchane/chips/SOURCES.md`). A stand-in for Apple's framework has each of them
(`tests/apple`), and a small network trains on it through the bridge: no Mac has confirmed any of this. A fault strikes at the
first dispatch of the forward, the first of the backward, a middle one and the last (of a load, where it strikes there, while one program
is loaded at a time); then at every dispatch of 20 steps. Counted is where the run ended as it must: never a wrong loss, a hang or a crash.
Wrong numbers are found where a dispatch is compared with the twin, here at each; between two looks they can pass
([limits](limits.md)), but for infinities, NaN and zeros throughout, which are compared at once.
"""


def rows(found: dict[str, Counter[str]]) -> list[str]:
    """A line for each fault; found: by fault, how often each thing was seen."""
    lines = ["| fault | as reported | what is done | what becomes of the run | kinds of dispatch | every dispatch of 20 steps |", "|---|---|---|---|---|---|"]
    for fault in FAULTS:
        counts = found.get(fault.name, Counter())
        kinds = ", ".join(kind for kind in KINDS if counts[kind]) if any(counts[kind] for kind in KINDS) else "-"
        every = f"{counts['every dispatch']:,} met it" if counts["every dispatch"] else "-"
        lines.append(f"| {fault.name} | {fault.symptom} | {remedy(fault)} | {BECOMES[fault.becomes]} | {kinds} | {every} |")
    return lines


def remedy(fault: Fault) -> str:
    """What the device tries, from its own policies."""
    if fault.becomes == REPLACED:
        return "the program is loaded again, then spelled otherwise; else the twin computes it"
    if fault.becomes == RESUMED:
        return "the process ends after 30 s; after three times at one program the twin computes it"
    special = {NO: "refused", EXCEPTION: "exception", NIL: "nil", "partial": "partial"}
    if fault.what == "restart":
        error = AppleError("error", "", "", policies.FRAMEWORK, 23)
    elif fault.what in special:
        error = AppleError(special[fault.what], "", "")
    elif fault.what in (COMPILER, CONNECTION):
        error = AppleError("error", "", "", *((policies.COMPILER, 1) if fault.what == COMPILER else (policies.COCOA, 4097)))
    else:
        error = AppleError("error", "", "", policies.FRAMEWORK, int(fault.what) - 1000)
    return policies.meaning_of(error).remedy.value


def measure() -> dict[str, Counter[str]]:
    """Runs the tests; raises SystemExit where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "results.json"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "long or not long", "-p", "no:cacheprovider", TESTS]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TORCHANE_EVIDENCE": str(kept)}, check=False)
        if done.returncode:
            raise SystemExit(f"{TESTS} fails: nothing was written.")
        results = json.loads(kept.read_text())
    return counted(results)


def counted(results: list[dict]) -> dict[str, Counter[str]]:
    """By fault, what each passed test saw."""
    found: dict[str, Counter[str]] = {}
    for result in results:
        inside = re.search(r"\[(.*)\]$", result["test"])
        measured = result["measured"]
        if inside is None or not measured:
            continue
        words = inside.group(1)
        name = next((fault.name for fault in FAULTS if words == fault.name or words.startswith(fault.name + "-")), FAULTS[-1].name)
        counts = found.setdefault(name, Counter())
        if "met" in measured:  # the kind of dispatch, as the test saw it: what compiles does so before the first
            counts[measured["met"]["value"]] += 1
        if "every dispatch" in measured:
            counts["every dispatch"] += measured["every dispatch"]["value"]
    return found


def kept_counts(text: str) -> dict[str, Counter[str]]:
    """What the file itself says was found."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| ") else []
        if len(cells) == 6 and cells[0] != "fault":
            counts = Counter({kind: 1 for kind in KINDS if kind in cells[4].split(", ")})
            every = re.match(r"([\d,]+) met it", cells[5])
            counts["every dispatch"] = int(every.group(1).replace(",", "")) if every else 0
            found[cells[0]] = counts
    return found


def is_current(text: str) -> bool:
    """Whether the file is of this table of faults and these policies, and each fault was struck."""
    found = kept_counts(text)
    return all(any(found.get(fault.name, {}).values()) for fault in FAULTS) and text.startswith(HEAD) and "\n".join(rows(found)) in text


def main(arguments: list[str]) -> int:
    """The exit code."""
    if "--check" in arguments:
        return 0 if TARGET.is_file() and is_current(TARGET.read_text(encoding="utf-8")) else 1
    found = measure()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    tail = f"Found at commit {commit} on {platform.system()}, {platform.machine()}, Python {platform.python_version()}, in the stand-in's `engine` arithmetic."
    TARGET.write_text("\n".join([HEAD, *rows(found), "", tail]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
