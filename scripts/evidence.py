"""Runs the long tier and keeps what it found: evidence/long.json, with command, commit and machine.

    python scripts/evidence.py            every long test
    python scripts/evidence.py tests/mil  some of them: evidence/tests-mil.json
    python scripts/evidence.py tests/mil/test_fuzz.py::test_x    one: evidence/tests-mil-test_fuzz-test_x.json

Every long test means two runs of pytest side by side, a processor each, for what computes on one (Python, small graphs), and
then training, which takes all processors.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAINING, CAPTURE = "tests/train", "tests/capture"


def main(paths: list[str]) -> int:
    name = "-".join(re.sub(r"\.py|\W+", lambda found: "" if found[0] == ".py" else "-", path.strip("/")) for path in paths) or "long"
    target = ROOT / "evidence" / f"{name}.json"
    started = time.time()
    if paths:
        runs = _run([paths])
    else:
        runs = _run([_others(), [CAPTURE]]) + _run([[TRAINING]])
    failure = next((code for code, _ in runs if code), 0)  # a killed run has a negative one
    record = {
        "command": " ".join(["python scripts/evidence.py", *paths]),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "src", "csrc", "tests")),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": _machine(),
        "duration_s": round(time.time() - started, 1),
        "exit_code": failure,
        "outcomes": {outcome: sum(test["outcome"] == outcome for _, tests in runs for test in tests) for outcome in ("passed", "failed", "skipped")},
        "tests": [test for _, tests in runs for test in tests],
    }
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"Written: {target.relative_to(ROOT)}, after {record['duration_s'] / 60:.0f} minutes: {record['outcomes']}")
    return failure


def _others() -> list[str]:
    """Every folder and file of tests but those that run by themselves."""
    found = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").iterdir() if path.is_dir() or path.name.startswith("test_"))
    return [path for path in found if path not in (TRAINING, CAPTURE) and not path.endswith("__pycache__")]


def _run(lanes: Sequence[Sequence[str]]) -> list[tuple[int, list[dict]]]:
    """pytest on each lane's paths, all lanes at once: exit codes and what each test found."""
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    own = len(lanes) > 1 and len(processors) >= len(lanes)
    if not own and len(lanes) > 1:
        return [one for lane in lanes for one in _run([lane])]
    started = []
    for number, lane in enumerate(lanes):
        collected = ROOT / "evidence" / f"{os.getpid()}-{number}.tmp"
        collected.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-m", "long", "-q", "-p", "no:cacheprovider", *lane]
        pin = (lambda cpu=processors[number]: os.sched_setaffinity(0, {cpu})) if own else None
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TORCHANE_EVIDENCE": str(collected)}, preexec_fn=pin)
        started.append((process, collected))
    found = []
    for process, collected in started:
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C: nothing goes on in the background
            for other, _ in started:
                other.terminate()
            raise
        tests = json.loads(collected.read_text()) if collected.exists() else []
        collected.unlink(missing_ok=True)
        found.append((code, tests))
    return found


def _machine() -> dict[str, object]:
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else []
    processor = models[0] if models else platform.processor()
    return {
        "system": platform.system(), "machine": platform.machine(), "processor": processor, "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }  # fmt: skip


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
