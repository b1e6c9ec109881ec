"""Three small programs before an engine is trusted: which route, which surfaces, and what a crash of the framework is."""

import json
import sys

import pytest
from standin import COMPILER, StandIn

from torchane.errors import DeviceError, MissingDeviceError
from torchane.runtime import devices
from torchane.runtime.ane import first_light, framework


@pytest.fixture
def found(machine):
    return framework.opened([str(machine.path)])


def test_the_in_memory_route_is_the_first(machine: StandIn, found, tmp_path):
    light = first_light.look(found, tmp_path / "light", patience=0.0)
    assert light == first_light.Light("memory", {"memory": ""}, False, "25A000")
    assert machine.loaded == 0


def test_a_route_that_is_refused_leaves_it_to_the_next(machine: StandIn, found, tmp_path):
    machine.hide("_ANEInMemoryModel")
    found = framework.opened([str(machine.path)])
    assert "_ANEInMemoryModel" in found.routes["memory"]
    assert first_light.look(found, tmp_path / "light", patience=0.0).route == "client"


def test_a_system_that_wants_equal_surfaces_is_found_out(machine: StandIn, found, tmp_path):
    machine.wants_equal_surfaces = True
    light = first_light.look(found, tmp_path / "light", patience=0.0)
    assert (light.route, light.equal_surfaces) == ("memory", True)


@pytest.mark.parametrize("damage", ["swapped", "zeros", "half", "one"])
def test_wrong_numbers_are_no_light(machine: StandIn, found, tmp_path, damage):
    machine.fail("evaluate", damage, times=1000)
    light = first_light.look(found, tmp_path / "light", patience=0.0)
    assert light.route == "" and all("first light" in why for why in light.tried.values())


def test_a_compiler_that_refuses_everything_is_no_light(machine: StandIn, found, tmp_path):
    machine.fail("compile", COMPILER, times=1000)
    with pytest.raises(MissingDeviceError, match=r"three small programs.*memory: first light.*--device twin"):
        first_light.require(found, tmp_path, lambda folder: first_light.look(found, folder, patience=0.0))
    assert not list(tmp_path.glob("first-light*.json"))


def test_a_folder_that_cannot_be_used_is_no_fault_of_the_engine(found, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="^The folder for compiled programs, .*file/ane, cannot be used: Not a directory"):
        first_light.require(found, tmp_path / "file" / "ane", lambda folder: pytest.fail("nothing is tried"))


def test_what_was_found_is_kept_for_this_build_only(machine: StandIn, found, tmp_path):
    calls = []

    def tell(folder):
        calls.append(folder)
        return first_light.look(found, folder, patience=0.0)

    for _ in range(2):
        assert first_light.require(found, tmp_path, tell).route == "memory"
    assert len(calls) == 1
    machine.build = "25B999"
    updated = framework.opened([str(machine.path)])
    first_light.require(updated, tmp_path, lambda folder: first_light.Light("client", {}, False, "25B999"))
    assert json.loads(next(tmp_path.glob("first-light*.json")).read_text())["route"] == "client"


@pytest.mark.parametrize("damage", [lambda text: text[:20], lambda text: "[]", lambda text: text.replace("memory", "nowhere"), lambda text: text.replace("false", "3")])
def test_a_damaged_record_is_made_anew(machine: StandIn, found, tmp_path, damage):
    def tell(folder):
        return first_light.look(found, folder, patience=0.0)

    first_light.require(found, tmp_path, tell)
    record = next(tmp_path.glob("first-light*.json"))
    whole = record.read_text()
    record.write_text(damage(whole))
    assert first_light.require(found, tmp_path, tell).route == "memory" and record.read_text() == whole


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11"),
        ("raise SystemExit('no such framework')", "no such framework"),
        ("print('nothing useful')", "did not survive"),
    ],
)
def test_a_crash_is_the_childs_and_is_told(tmp_path, script, said):
    with pytest.raises(MissingDeviceError, match=said):
        first_light.in_child(tmp_path, [sys.executable, "-c", script])


def test_a_child_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(first_light, "LIMIT_S", 0.3)
    with pytest.raises(MissingDeviceError, match="did not answer"):
        first_light.in_child(tmp_path, [sys.executable, "-c", "import time; time.sleep(60)"])


@pytest.mark.skipif(sys.platform == "darwin", reason="on a Mac the child finds the engine")
def test_on_linux_the_child_says_what_is_missing(tmp_path):
    with pytest.raises(MissingDeviceError, match="There is no Neural Engine here"):
        first_light.in_child(tmp_path)


@pytest.mark.parametrize(("system", "machine", "said"), [("Darwin", "x86_64", "An Intel Mac has none"), ("Windows", "AMD64", "Windows on AMD64")])
def test_a_machine_of_another_kind_is_told_before_anything_is_opened(monkeypatch, system, machine, said):
    monkeypatch.setattr(framework.platform, "system", lambda: system)
    monkeypatch.setattr(framework.platform, "machine", lambda: machine)
    monkeypatch.setattr(framework, "opened", lambda *_: pytest.fail("opened"))
    with pytest.raises(MissingDeviceError, match=f"{said}.*--device twin"):
        framework.find()


def test_a_virtual_machine_is_told(machine: StandIn):
    machine.is_virtual = True
    with pytest.raises(MissingDeviceError, match="virtual machine"):
        framework.opened([str(machine.path)])


def test_a_framework_without_any_route_is_told_with_what_each_lacks(machine: StandIn):
    machine.hide("_ANEIOSurfaceObject")
    assert framework.opened([str(machine.path)]).usable == ("e5",)
    machine.hide("objectWithIOSurface:")
    machine.library.standin_encoding(b"", b"")
    assert "objectWithIOSurface:" in framework.opened([str(machine.path)]).routes["client"]


def test_the_engine_opens_by_name_once_it_has_shown_that_it_computes(machine: StandIn, found, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHANE_CACHE", str(tmp_path))
    monkeypatch.setattr(devices, "_open", {})
    monkeypatch.setattr(framework, "find", lambda: found)
    monkeypatch.setattr(first_light, "in_child", lambda folder: first_light.look(found, folder, patience=0.0))
    device = devices.open_device("ane")
    assert (device.name, device.route) == ("ane", "memory")
    assert devices.open_device("ane") is device
    device.close()


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have an engine")
def test_auto_is_the_twin_where_there_is_no_engine():
    assert devices.open_device("auto").name == "twin"
    assert devices.auto_choice() == ("twin", "there is no Neural Engine that torchane can use here")
