"""What a computation draws: watts by rail, where a meter can be read and moves; else why there is none.

    zeus-apple-silicon   IOReport's energy of CPU, GPU, DRAM and engine, in joules      no root; the engine's does not move on macOS 27 (reports)
    powermetrics         mean power of the same, printed every 500 ms                   root: sudo -n must pass
    zeus                 RAPL's package and DRAM, in joules                             Linux, readable /sys/class/powercap

Each is read over a window at rest and over one of work. A rail counts as moved where work draws MOVED_W and a tenth more than rest: a
counter that does not move says nothing, not that nothing is drawn. Rails are the chip's own sensors, no power at the wall.
"""

import importlib
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

#: Least difference between work and rest, in watts and as a share of rest.
MOVED_W, MOVED_SHARE = 0.05, 0.1
#: Reports: 200 ms and 500 ms differed 200 times in one run; 500 agrees with others.
POWERMETRICS_MS = 500
POWERMETRICS = ["sudo", "-n", "powermetrics", "--samplers", "ane_power,cpu_power,gpu_power", "-i", str(POWERMETRICS_MS)]

_LINE = re.compile(r"^(ANE|CPU|GPU|Combined) Power[^:]*: *(\d+) *mW", re.MULTILINE)


class Meter(Protocol):
    """name: of the meter, for tables."""

    name: str

    def watts(self, act: Callable[[], None]) -> dict[str, float]:
        """Runs act and gives the mean power of each rail meanwhile. Raises Unreadable."""
        ...


class Unreadable(Exception):
    """Why a meter cannot be read."""


class ZeusApple:
    """Of zeus-apple-silicon."""

    name = "zeus-apple-silicon (IOReport)"

    def __init__(self) -> None:
        self._monitor = _module("zeus_apple_silicon").AppleEnergyMonitor()

    def watts(self, act: Callable[[], None]) -> dict[str, float]:
        start = time.perf_counter()
        self._monitor.begin_window("torchane")
        act()
        found = self._monitor.end_window("torchane")
        elapsed_s = time.perf_counter() - start
        rails = {"ANE": "ane_mj", "CPU": "cpu_total_mj", "GPU": "gpu_mj", "DRAM": "dram_mj"}
        return {rail: value / 1e3 / elapsed_s for rail, field in rails.items() if (value := getattr(found, field, None)) is not None}


class ZeusRapl:
    """Of zeus, on Linux."""

    name = "zeus (RAPL)"

    def __init__(self) -> None:
        try:
            self._cpus = _module("zeus.device.cpu").get_cpus()
            self._joules()
        except Unreadable:
            raise
        except Exception as error:  # zeus has one class of exception for each way to fail
            raise Unreadable(f"{error or type(error).__name__}") from error

    def _joules(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for index in range(len(self._cpus)):
            measured = self._cpus.get_total_energy_consumption(index)
            for rail, millijoules in (("package", measured.cpu_mj), ("DRAM", measured.dram_mj)):
                if millijoules is not None:
                    found[rail] = found.get(rail, 0.0) + millijoules / 1e3
        if not found:
            raise Unreadable("RAPL has no zone here")
        return found

    def watts(self, act: Callable[[], None]) -> dict[str, float]:
        before, start = self._joules(), time.perf_counter()
        act()
        after, elapsed_s = self._joules(), time.perf_counter() - start
        return {rail: (value - before[rail]) / elapsed_s for rail, value in after.items()}


class Powermetrics:
    """Of Apple's command."""

    name = "powermetrics"

    def __init__(self) -> None:
        try:
            tried = subprocess.run([*POWERMETRICS, "-n", "1"], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unreadable(f"it cannot be started: {error}") from error
        if tried.returncode or not _LINE.search(tried.stdout):
            raise Unreadable("it needs root. Run `sudo -v` before, in this terminal")

    def watts(self, act: Callable[[], None]) -> dict[str, float]:
        process = subprocess.Popen(POWERMETRICS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            act()
        finally:
            process.terminate()
            printed, _ = process.communicate()
        samples: dict[str, list[float]] = {}
        for rail, milliwatts in _LINE.findall(printed):
            samples.setdefault(rail, []).append(float(milliwatts) / 1e3)
        if not samples:
            raise Unreadable("it printed nothing in that time")
        return {rail: sum(values) / len(values) for rail, values in samples.items()}


@dataclass(frozen=True)
class Drawn:
    """Watts by rail at rest and at work, and what moved. why: for each meter that could not be read."""

    meter: str
    rest_w: dict[str, float]
    work_w: dict[str, float]
    why: dict[str, str]

    @property
    def moved(self) -> dict[str, float]:
        """Watts of work of the rails that moved."""
        return {
            rail: watts
            for rail, watts in self.work_w.items()
            if watts - self.rest_w.get(rail, 0.0) > max(MOVED_W, MOVED_SHARE * self.rest_w.get(rail, 0.0))
        }


def meters() -> tuple[list[Meter], dict[str, str]]:
    """Those of this system that can be read, and why the others cannot."""
    kinds: tuple[Any, ...] = (Powermetrics, ZeusApple) if sys.platform == "darwin" else (ZeusRapl,)
    found: list[Meter] = []
    why: dict[str, str] = {}
    for kind in kinds:
        try:
            found.append(kind())
        except Unreadable as error:
            why[kind.name] = str(error)
    return found, why


def drawn(run: Callable[[], object], seconds: float) -> Drawn:
    """Rest for so long, then `run` again and again for so long; by the first meter of which a rail moves, else the last that was read."""
    readable, why = meters()
    best = Drawn("", {}, {}, why)
    for meter in readable:
        try:
            rest = meter.watts(lambda: time.sleep(seconds))
            work = meter.watts(lambda: _for(run, seconds))
        except Unreadable as error:
            why[meter.name] = str(error)
            continue
        best = Drawn(meter.name, rest, work, why)
        if best.moved:
            break
        why[meter.name] = "none of its rails moved: " + ", ".join(f"{rail} {rest.get(rail, 0):.2f} W at rest, {watts:.2f} at work" for rail, watts in work.items())
    return best


def beside_idle(run: Callable[[], object], seconds: float) -> dict[str, Any]:
    """The same as doctor keeps it: watts of what moved, or "n/a" and why."""
    found = drawn(run, seconds)
    if not found.moved:
        return {"watts": "n/a", "why": "; ".join(f"{meter}: {reason}" for meter, reason in found.why.items()) or "no meter is known for this system"}
    return {"meter": found.meter, **{f"{rail}, W": [round(found.rest_w.get(rail, 0.0), 3), round(watts, 3)] for rail, watts in found.work_w.items()}, "moved": sorted(found.moved)}


def _for(run: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        run()


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unreadable("it is not installed: pip install 'torchane[energy]'") from error
