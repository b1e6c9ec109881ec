"""A dispatch that never returns: the process ends with a named error, and a program that does it three times is left alone."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from standin import StandIn

from torchane.errors import TorchaneWarning
from torchane.runtime.ane import watchdog
from torchane.runtime.ane.watchdog import EXIT_CODE, MOST_HANGS, Watchdog

HERE = Path(__file__).resolve()

#: A process whose engine hangs at the second dispatch.
HANGING = f"""
import sys
sys.path[:0] = [{str(HERE.parents[2] / "apple")!r}, {str(HERE.parent)!r}]
from pathlib import Path
from standin import HANGS, StandIn
from torchane.runtime.ane import AneDevice, framework
from torchane.runtime.ane.cache import CompileCache
from test_device import Loaded
library, folder = map(Path, sys.argv[1:3])
machine = StandIn(library, folder / "daemon")
found = framework.opened([str(library)])
device = AneDevice(found, cache=CompileCache(folder / "cache", found.build), dispatch_s=0.3)
loaded = Loaded(device).run()
for _ in range(int(sys.argv[3])):
    loaded.inputs[0].array[...] += 1
    loaded.run()
machine.fail("evaluate", HANGS)
loaded.run()
"""


@pytest.mark.parametrize("before", [0, 3])
def test_a_hang_ends_the_process_and_is_recorded(standin_library, tmp_path, before):
    """At a dispatch that is looked at, and at one that runs as others did before."""
    command = [sys.executable, "-c", HANGING, str(standin_library), str(tmp_path), str(before)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == EXIT_CODE, done.stderr
    assert "layer3: the Neural Engine has not answered" in done.stderr and "--resume" in done.stderr
    (known,) = json.loads((tmp_path / "cache" / "hangs.json").read_text()).values()
    assert known["name"] == "layer3" and known["count"] == 1


def test_a_program_that_hung_three_times_is_the_twins(machine: StandIn, engine):
    from test_device import Loaded

    key = Loaded(engine).program.source.key
    engine.cache.root.mkdir(exist_ok=True)
    (engine.cache.root / "hangs.json").write_text(json.dumps({key: {"name": "layer3", "count": MOST_HANGS}}))
    with pytest.warns(TorchaneWarning, match="hung 3 times"):
        loaded = Loaded(engine)
    assert loaded.run().is_right()
    assert machine.events["evaluate"] == 0


def test_what_returns_in_time_is_left_alone(tmp_path):
    said = []
    dog = Watchdog(tmp_path / "hangs.json", said.append)
    for _ in range(50):
        dog.begin("layer3", "key", 10.0)
        dog.end()
    dog.close()
    assert not said and not dog.hangs("key")


def test_hangs_are_counted_per_program(tmp_path):
    said, reached = [], threading.Event()
    dog = Watchdog(tmp_path / "hangs.json", lambda text: (said.append(text), reached.set()))
    for count in range(1, MOST_HANGS + 1):
        reached.clear()
        dog.begin("layer3", "key", 0.02)
        assert reached.wait(10)
        assert dog.hangs("key") == count and dog.hangs("other") == 0
    assert "the twin computes it" in said[-1]
    dog.close()


def test_time_that_the_machine_slept_is_no_hang(tmp_path, monkeypatch):
    """On a Mac whose clock goes on in sleep, and wherever a process was stopped: the clock jumps between two looks."""
    said, plain, slept_s = [], time.monotonic, [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: plain() + slept_s[0])
    dog = Watchdog(tmp_path / "hangs.json", said.append)
    dog.begin("layer3", "key", 1.0)
    time.sleep(0.25)
    slept_s[0] = 3600.0
    time.sleep(0.25)
    assert not said
    dog.end()
    dog.close()


#: A process whose dispatches take half a second, stopped in the middle of one.
SLOW = HANGING.replace("dispatch_s=0.3", "dispatch_s=1.0").replace(
    'machine.fail("evaluate", HANGS)\nloaded.run()',
    "plain = machine._engine\n"
    "def slow(*given):\n    print('in', flush=True)\n    time.sleep(0.5)\n    return plain(*given)\n"
    "machine._engine = slow\nloaded.run()\nassert loaded.is_right()",
).replace("import sys\n", "import sys, time\n", 1)


def test_a_process_that_is_stopped_in_mid_step_goes_on(standin_library, tmp_path):
    """As by Ctrl-Z, or by a lid that is closed, for longer than a dispatch may take."""
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(standin_library), str(tmp_path), "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.3)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def test_two_processes_that_hang_both_count(tmp_path):
    dogs = [Watchdog(tmp_path / "hangs.json", lambda text: None) for _ in range(2)]
    threads = [threading.Thread(target=lambda dog=dog: [dog._recorded("layer3", "key", 1.0, 2.0) for _ in range(20)]) for dog in dogs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dogs[0].hangs("key") == 40


@pytest.mark.parametrize("text", ["not JSON", "[]", '{"key": 3}', '{"key": {"count": "3"}}', '{"key": {"count": nu'])
def test_a_record_that_is_damaged_counts_nothing(tmp_path, text):
    (tmp_path / "hangs.json").write_text(text)
    assert Watchdog(tmp_path / "hangs.json").hangs("key") == 0
