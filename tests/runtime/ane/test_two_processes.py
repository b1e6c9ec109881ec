"""Two processes on one engine and one folder of compiled programs: each is right, and neither takes from the other what it uses."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve()

#: A process that loads, runs and gives up programs, while the folder is too small for them: it evicts all the time.
WORKER = f"""
import sys, warnings
sys.path[:0] = [{str(HERE.parents[2] / "apple")!r}, {str(HERE.parent)!r}]
warnings.simplefilter("error")
from pathlib import Path
from standin import StandIn
from torchane.runtime.ane import AneDevice, framework
from torchane.runtime.ane.cache import CompileCache
from test_device import Loaded, program
library, folder = map(Path, sys.argv[1:3])
machine = StandIn(library, folder / "daemon")
found = framework.opened([str(library)])
device = AneDevice(found, cache=CompileCache(folder / "cache", found.build, most_bytes=4000), patience=0.0)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(int(sys.argv[3])):
    every = [Loaded(device, program(2.0 + factor)) for factor in range(3)]  # the same programs in both processes
    for one in every:
        assert one.run().is_right()
    if turn % 3 == 0:
        device.cache.clear()
    del every, one
assert not machine.errors, machine.errors
device.close()
print(device.counts["verified"], device.counts["quarantined"])
"""


def both(library: Path, folder: Path, turns: int) -> list[str]:
    command = [sys.executable, "-c", WORKER, str(library), str(folder), str(turns)]
    two = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in two:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in two:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=600) for process in two]
    assert all(process.returncode == 0 for process in two), [errors for _, errors in said]
    return [out.strip() for out, _ in said]


def test_each_of_two_processes_has_right_numbers(standin_library, tmp_path):
    assert both(standin_library, tmp_path, turns=4) == ["12 0"] * 2


@pytest.mark.long
def test_two_processes_share_engine_and_folder_for_long(standin_library, tmp_path, evidence):
    said = both(standin_library, tmp_path, turns=150)
    evidence("programs loaded and right in each of two processes", 450)
    assert said == ["450 0"] * 2
