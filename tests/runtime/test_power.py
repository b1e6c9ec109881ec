"""Watts by rail, from commands and packages that answer as the real ones document."""

import sys
import time
import types

import pytest

from torchane.runtime import power

POWERMETRICS = """*** Sampled system activity ***
CPU Power: {cpu} mW
GPU Power: 12 mW
ANE Power: {ane} mW
Combined Power (CPU + GPU + ANE): 999 mW
"""


@pytest.fixture
def powermetrics(tmp_path, monkeypatch):
    """A command whose engine draws 2463 mW once `busy` is called, else nothing."""
    busy = tmp_path / "busy"
    script = tmp_path / "powermetrics"
    idle, work = POWERMETRICS.format(cpu=300, ane=0), POWERMETRICS.format(cpu=310, ane=2463)
    script.write_text(
        f"#!/bin/sh\nif [ \"$1\" = -n ]; then echo '{idle}'; exit 0; fi\n"
        f"for i in 1 2 3 4 5 6 7 8 9; do if [ -e {busy} ]; then echo '{work}'; else echo '{idle}'; fi; sleep 0.05; done\nsleep 10\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(power, "POWERMETRICS", [str(script)])
    monkeypatch.setattr(power.sys, "platform", "darwin")
    return busy.touch


def test_a_rail_that_moves_is_given_in_watts(powermetrics):
    found = power.beside_idle(powermetrics, 0.4)
    assert found["meter"] == "powermetrics" and found["moved"] == ["ANE", "Combined"][:1]
    rest, work = found["ANE, W"]
    assert rest == 0 and 1 < work <= 2.463


def test_a_rail_that_stands_still_is_not_taken_for_nothing(powermetrics):
    found = power.beside_idle(lambda: None, 0.2)
    assert found["watts"] == "n/a" and "none of its rails moved" in found["why"] and "zeus-apple-silicon" in found["why"]


def test_a_command_that_needs_root_says_so(powermetrics, monkeypatch):
    monkeypatch.setattr(power, "POWERMETRICS", ["false"])
    assert "needs root" in power.beside_idle(lambda: None, 0.01)["why"]


def test_zeus_of_apple_is_read_over_the_window(monkeypatch):
    class Monitor:
        """Two windows: at rest 0 mJ of the engine, at work 5,000."""

        ended = 0

        def begin_window(self, key):
            self.key = key

        def end_window(self, key):
            assert key == self.key
            Monitor.ended += 1
            return types.SimpleNamespace(ane_mj=0 if Monitor.ended == 1 else 5000, cpu_total_mj=100, gpu_mj=None, dram_mj=7)

    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", types.SimpleNamespace(AppleEnergyMonitor=Monitor))
    monkeypatch.setattr(power, "POWERMETRICS", ["false"])
    monkeypatch.setattr(power.sys, "platform", "darwin")
    found = power.drawn(lambda: None, 0.1)
    assert found.moved.keys() == {"ANE"} and 10 < found.moved["ANE"] <= 50
    assert "GPU" not in found.work_w


def test_zeus_on_linux_is_read_before_and_after(monkeypatch):
    class Cpus:
        read = 0

        def __len__(self):
            return 2

        def get_total_energy_consumption(self, index):
            Cpus.read += 1
            return types.SimpleNamespace(cpu_mj=Cpus.read**3 * 100.0, dram_mj=None)

    monkeypatch.setitem(sys.modules, "zeus.device.cpu", types.SimpleNamespace(get_cpus=Cpus))
    monkeypatch.setitem(sys.modules, "zeus", types.ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.device", types.ModuleType("zeus.device"))
    monkeypatch.setattr(power.sys, "platform", "linux")
    found = power.drawn(lambda: None, 0.05)
    assert found.meter == "zeus (RAPL)" and found.moved.keys() == {"package"}


def test_zeus_itself_reads_the_counters_of_the_system(monkeypatch, tmp_path):
    """zeus, not something in its place, over files like those of /sys/class/powercap."""
    cpu = pytest.importorskip("zeus.device.cpu", reason="needs zeus")
    monkeypatch.setattr(power.sys, "platform", "linux")
    monkeypatch.setattr(cpu, "_cpus", None)
    rapl = sys.modules["zeus.device.cpu.rapl"]
    rapl.rapl_is_available.cache_clear()
    monkeypatch.setattr(rapl, "RAPL_DIR", str(tmp_path / "intel-rapl"))
    assert "RAPL" in power.beside_idle(lambda: None, 0.01)["why"]
    rapl.rapl_is_available.cache_clear()
    zones = {"package-0": tmp_path / "intel-rapl" / "intel-rapl:0", "dram": tmp_path / "intel-rapl" / "intel-rapl:0" / "intel-rapl:0:0"}
    for name, zone in zones.items():
        zone.mkdir(parents=True)
        for file, text in {"name": name, "energy_uj": "1000000", "max_energy_range_uj": "262143328850"}.items():
            (zone / file).write_text(text)
    monkeypatch.setattr(rapl.RaplWraparoundTracker, "__init__", lambda self, *_: None)  # a process that counts the counters' turns
    monkeypatch.setattr(rapl.RaplWraparoundTracker, "get_num_wraparounds", lambda self: 0)

    def work():
        counter = zones["package-0"] / "energy_uj"
        counter.write_text(str(int(counter.read_text()) + 50_000))
        time.sleep(0.01)

    found = power.drawn(work, 0.1)
    rapl.rapl_is_available.cache_clear()
    assert found.meter == "zeus (RAPL)" and found.moved.keys() == {"package"}
    assert 1 < found.moved["package"] <= 5.0 and found.work_w["DRAM"] == 0.0


def test_what_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus.device.cpu", None)
    monkeypatch.setattr(power.sys, "platform", "linux")
    assert "pip install 'torchane[energy]'" in power.beside_idle(lambda: None, 0.01)["why"]
