"""How long does `torchane plan --preset` take?    python benchmarks/planning.py [--preset stories110m ...] [--rounds 3]

Fixed: 8 x 256 tokens for m4, a new process for each reading, in a folder of caches of its own. first: nothing is on disk. traced: the lowered programs of
a former plan are, the plan is not. again: the plan is. import: a process that imports PyTorch and Dynamo and ends, the floor of the first two.
Wall and processor seconds (user and system), the median of the rounds and the range; the kinds take turns. The last line of output is JSON.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KINDS = ("import", "first", "traced", "again")


def reading(command: list[str], caches: Path) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env={**os.environ, "TORCHANE_CACHE": str(caches)}, check=True, capture_output=True)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(preset: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Kind -> wall and processor, each [median, lowest, highest]."""
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    plan = [sys.executable, "-m", "torchane", "plan", "--preset", preset, "--batch-size", "8", "--seq-len", "256", "--chip", "m4"]
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            caches = Path(folder)
            found["import"].append(reading([sys.executable, "-c", "import torch._dynamo"], caches))
            found["first"].append(reading(plan, caches))
            shutil.rmtree(caches / "plans")
            found["traced"].append(reading(plan, caches))
            found["again"].append(reading(plan, caches))
    return {
        kind: {name: [round(f(column), 2) for f in (statistics.median, min, max)] for name, column in zip(("wall", "processor"), zip(*readings, strict=True), strict=True)}
        for kind, readings in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found = {preset: measured(preset, given.rounds) for preset in given.preset or ["stories110m", "qwen3-0.6b"]}
    for preset, kinds in found.items():
        print(f"{preset}, seconds: median (lowest to highest); load {os.getloadavg()[0]:.1f}")
        for kind, columns in kinds.items():
            print(f"  {kind:7s}" + "".join(f"  {name} {middle:.2f} ({low:.2f} to {high:.2f})" for name, (middle, low, high) in columns.items()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
