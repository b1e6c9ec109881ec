"""Runs the long tier and keeps what it found: evidence/long.json, with command, commit and machine.

    python scripts/evidence.py            every long test
    python scripts/evidence.py tests/mil  some of them: evidence/tests-mil.json
    python scripts/evidence.py tests/mil/test_fuzz.py::test_x    one: evidence/tests-mil-test_fuzz-test_x.json
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(paths: list[str]) -> int:
    name = "-".join(re.sub(r"\.py|\W+", lambda found: "" if found[0] == ".py" else "-", path.strip("/")) for path in paths) or "long"
    target = ROOT / "evidence" / f"{name}.json"
    collected = target.with_suffix(".tmp")
    collected.unlink(missing_ok=True)
    command = ["-m", "pytest", "-m", "long", "-q", *paths]
    started = time.time()
    code = subprocess.call(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, "TORCHANE_EVIDENCE": str(collected)}
    )
    results = json.loads(collected.read_text()) if collected.exists() else []
    collected.unlink(missing_ok=True)
    record = {
        "command": " ".join(["python", *command]),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "src", "csrc", "tests")),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "duration_s": round(time.time() - started, 1),
        "exit_code": code,
        "tests": results,
    }
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"Written: {target.relative_to(ROOT)}")
    return code


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
