"""Nothing grows: 10,000 cycles of load, evaluate, unload, by the benchmark that says what a dispatch costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[3] / "benchmarks" / "bridge.py"


@pytest.mark.long
def test_ten_thousand_cycles_leave_memory_handles_and_files_as_they_were(standin_library, evidence):
    """standin_library: skipped where the stand-in cannot be built."""
    done = subprocess.run([sys.executable, str(BENCHMARK), "--cycles", "10000"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])["growth"]
    before, after = found["before"], found["after"]
    evidence("after 1,000 and 10,000 cycles", [dict(before), dict(after)])
    assert after.pop("resident_kb") <= before.pop("resident_kb") + 2048
    assert after == before
