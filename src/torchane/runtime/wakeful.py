"""A Mac that trains: what it draws from, whether it is slowed down, and that it does not fall asleep meanwhile.

    state()          battery, low power mode, thermal pressure, as Apple's pmset says; [] elsewhere
    awake()          while the block runs, no sleep for want of input (the display may sleep); nothing elsewhere
Sleep by a closed lid or an empty battery goes on: a dispatch that it breaks is met by the device's remedies.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

#: Of macOS, both without root.
PMSET, CAFFEINATE = "pmset", "caffeinate"


def state() -> list[str]:
    """What is worth knowing before numbers are compared, a sentence each; nothing where all is as it should be."""
    said = []
    battery = _said("-g", "batt")
    if "Battery Power" in battery:
        left = re.search(r"(\d+)%", battery)
        said.append(f"On battery{f', {left.group(1)} % left' if left else ''}: macOS may slow the machine down. A run's checkpoints outlive an empty one.")
    if re.search(r"^\s*(?:lowpowermode|powermode)\s+1\s*$", _said("-g"), re.MULTILINE):
        said.append("Low power mode is on: expect half the speed. System Settings, Battery.")
    thermal = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", _said("-g", "therm"))
    if thermal and int(thermal.group(1)) < 100:
        said.append(f"The machine is hot: its processors run at {thermal.group(1)} % of their speed.")
    return said


@contextmanager
def awake() -> Iterator[bool]:
    """Keeps the machine from idle sleep; False where it cannot be, or need not."""
    command = shutil.which(CAFFEINATE)
    if command is None:
        yield False
        return
    try:
        # -w: it ends with this process, however that ends.
        process = subprocess.Popen([command, "-i", "-w", str(os.getpid())], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        process.terminate()
        process.wait()


def _said(*arguments: str) -> str:
    command = shutil.which(PMSET)
    if command is None:
        return ""
    try:
        return subprocess.run([command, *arguments], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
