"""Starts doctor's child, reads what it finds line by line, and starts it again behind a check that ended it."""

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from torchane.runtime.ane.doctor.checks import all_checks

CHILD = [sys.executable, "-m", "torchane.runtime.ane.doctor.child"]
#: A check that takes longer hangs: the first compilation after an update of macOS takes minutes.
LIMIT_S = 120.0
#: All checks together, after which the rest is left out and said to be.
FULL_S, QUICK_S = 300.0, 20.0

Findings = dict[str, dict[str, Any]]


def examine(quick: bool, tell: Callable[[str, dict[str, Any]], None], command: Sequence[str] = ()) -> tuple[dict[str, Any], Findings, str]:
    """What the framework says of the machine, the finding of every check by name, and why there is no engine ("" if there is).

    tell: called with each finding as it comes. A crash is {"ok": False, "crashed": signal}, a hang {"ok": False, "hung": seconds}.
    """
    machine: dict[str, Any] = {}
    findings: Findings = {}
    deadline = time.monotonic() + (QUICK_S if quick else FULL_S)
    with tempfile.TemporaryDirectory(prefix="torchane-doctor-") as folder:
        while True:
            skip = _skip(findings)
            arguments = [*(command or CHILD), folder, *(["--quick"] if quick else []), *(f"--skip={name}" for name in skip)]
            said, ended = _run(arguments, tell, findings, deadline)
            machine = said.get("machine", machine)
            if "missing" in said:
                return machine, findings, said["missing"]
            light = findings.get("first light", {})
            if "first light" not in findings or not light.get("route"):
                return machine, findings, _no_light(light, ended)
            if _skip(findings) == skip or ended == "late":
                break  # nothing new: all is done
    for check in all_checks():
        if check.name not in findings and (check.quick or not quick):
            findings[check.name] = {"left out": "there was no time"}
    return machine, findings, ""


def _skip(findings: Findings) -> list[str]:
    light = findings.get("first light", {})
    route = [f"route={light['route']},{'equal' if light['equal_surfaces'] else 'any'}"] if light.get("route") else []
    return [*findings, *route]


def _no_light(light: dict[str, Any], ended: str) -> str:
    if light.get("tried"):
        return "The Neural Engine did not pass three small programs: " + "; ".join(f"{route}: {why}" for route, why in light["tried"].items())
    return f"Apple's framework did not survive three small programs: {light or ended or 'no answer'}"


def _run(
    command: Sequence[str], tell: Callable[[str, dict[str, Any]], None], findings: Findings, deadline: float
) -> tuple[dict[str, Any], str]:
    """One child to its end: what it said beside findings, and "", "late", or how it ended."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines: queue.Queue[str | None] = queue.Queue()
    errors: list[str] = []
    readers = [threading.Thread(target=_pump, args=(child.stdout, lines.put), daemon=True), threading.Thread(target=_pump, args=(child.stderr, errors.append), daemon=True)]
    for reader in readers:
        reader.start()
    said: dict[str, Any] = {}
    current, ended = "", ""
    try:
        while True:
            left = min(LIMIT_S, deadline - time.monotonic())
            line = lines.get(timeout=max(left, 0.01))
            if line is None:
                break
            one = _parsed(line)
            current = one.get("begin", "" if "done" in one else current)
            if "done" in one:
                findings[one["done"]] = one["found"]
                tell(one["done"], one["found"])
            said |= {key: one[key] for key in ("machine", "missing") if key in one}
    except queue.Empty:
        ended = "late" if time.monotonic() >= deadline else "hung"
        child.kill()
    code = child.wait()
    for reader in readers:
        reader.join()
    if current and ended != "late":
        last = next((text.strip() for text in reversed(errors) if text and text.strip()), "")
        findings[current] = {"ok": False, "hung": LIMIT_S} if ended else {"ok": False, "crashed": f"signal {-code}" if code < 0 else f"exit {code}", "last words": last}
        tell(current, findings[current])
    return said, ended


def _pump(stream: Any, put: Callable[[Any], object]) -> None:
    with stream:
        for line in stream:
            put(line)
    put(None)


def _parsed(line: str) -> dict[str, Any]:
    """{} for what the framework prints by itself."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
