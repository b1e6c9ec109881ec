"""What --device auto is where torchane doctor has not looked."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from torchane.errors import MissingDeviceError
from torchane.runtime import devices
from torchane.runtime.ane import framework
from torchane.runtime.ane.doctor import examine as examining
from torchane.runtime.ane.doctor import quick_look, record, report

CHILD = Path(__file__).resolve().parents[2] / "apple" / "doctor_on_standin.py"
RIGHT = {"first light": {"route": "memory"}, **{f"op {name}": {"ok": True} for name in ("conv", "matmul", "softmax")}}
WHY = "torchane doctor has not looked at this Mac's Neural Engine yet"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(quick_look, "_looked", {})


def looking(missing="", **findings):
    """A look that finds this, and how often it was taken."""
    times = []

    def look():
        times.append(1)
        return report.made(True, missing, {"build": "25A000"}, {**RIGHT, **findings})

    return look, times


def test_what_a_look_finds_right_is_taken_and_kept(tmp_path, capsys, monkeypatch):
    look, times = looking()
    assert quick_look.choice("25A000", WHY, tmp_path, look) == ("ane", f"{WHY}; a quick look found it right, torchane doctor looks at more")
    assert "a quick look at it for --device auto, 20 s at most" in capsys.readouterr().err
    monkeypatch.setattr(quick_look, "_looked", {})  # another process
    assert quick_look.choice("25A000", WHY, tmp_path, look)[0] == "ane"
    assert len(times) == 1 and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("findings", "said"),
    [({"op softmax": {"ok": False}}, "not right: op softmax"), ({"op matmul": {"ok": False, "crashed": "signal 11"}}, "not right: op matmul"),
     ({"missing": "The Neural Engine did not pass three small programs: memory: no."}, "found: The Neural Engine did not pass three small programs: memory: no")],
)  # fmt: skip
def test_what_it_finds_wrong_is_the_twins_and_kept(tmp_path, findings, said):
    look, times = looking(**findings)
    for _ in range(2):
        name, why = quick_look.choice("25A000", WHY, tmp_path, look)
        assert name == "twin" and why.endswith(said)
    assert len(times) == 1


def test_doctors_quick_look_counts_in_place_of_an_earlier_one(tmp_path, monkeypatch, cache_folder):
    from torchane.cli.doctor import command

    look, times = looking(**{"op softmax": {"ok": False}})
    assert quick_look.choice("25A000", WHY, look=look)[0] == "twin"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(examining, "examine", lambda quick, tell: ({"build": "25A000"}, RIGHT, ""))
    command.main(["--quick"], standalone_mode=False)
    monkeypatch.setattr(quick_look, "_looked", {})
    assert quick_look.choice("25A000", WHY, look=look)[0] == "ane" and len(times) == 1


def test_what_had_no_time_is_looked_at_again_by_the_next_process(tmp_path, monkeypatch):
    look, times = looking(**{"op softmax": {"left out": "there was no time"}})
    for _ in range(2):
        monkeypatch.setattr(quick_look, "_looked", {})
        name, why = quick_look.choice("25A000", WHY, tmp_path, look)
        assert name == "twin" and "no time for op softmax" in why
    assert len(times) == 2


def test_another_build_and_another_torchane_are_looked_at_anew(tmp_path, monkeypatch):
    look, times = looking()
    quick_look.choice("25A000", WHY, tmp_path, look)
    quick_look.choice("25B999", WHY, tmp_path, look)
    assert len(times) == 2
    monkeypatch.setattr(quick_look, "_looked", {})
    monkeypatch.setattr(quick_look, "version", lambda name: "9.9")
    quick_look.choice("25B999", WHY, tmp_path, look)
    assert len(times) == 3


def test_a_folder_that_cannot_be_written_costs_one_look_a_process(tmp_path):
    (tmp_path / "file").write_text("")
    look, times = looking()
    for _ in range(2):
        assert quick_look.choice("25A000", WHY, tmp_path / "file", look)[0] == "ane"
    assert len(times) == 1


@pytest.fixture
def auto(machine, tmp_path, monkeypatch):
    """--device auto on a machine that nobody has looked at. A fault strikes in the child."""
    found = framework.opened([str(machine.path)])
    monkeypatch.setattr(framework, "find", lambda: found)

    def choose(fault=""):
        monkeypatch.setattr(examining, "CHILD", [sys.executable, str(CHILD), str(machine.path), str(tmp_path / "daemon"), "exact", fault])
        return devices.auto_choice()

    return choose


def test_auto_takes_an_engine_that_passes(auto):
    assert auto() == ("ane", f"{WHY}; a quick look found it right, torchane doctor looks at more")


def test_auto_is_the_twin_where_the_look_crashes(auto):
    name, why = auto("light crash:0")
    assert name == "twin" and "did not survive three small programs" in why


def test_a_record_of_doctors_decides_without_a_look(auto, cache_folder, monkeypatch):
    monkeypatch.setattr(quick_look, "choice", lambda *_: pytest.fail("looked"))
    made = report.made(False, "", {"build": "25A000"}, {**RIGHT, "op exp": {"ok": False}})
    record.keep(made)
    assert auto() == ("twin", "torchane doctor found this Mac's Neural Engine not right: op exp")
    monkeypatch.setattr(report.Report, "works", True)
    record.keep(replace(made, findings=RIGHT))
    assert auto()[0] == "ane"


def test_where_there_is_no_engine_nothing_is_looked_at(monkeypatch):
    def find():
        raise MissingDeviceError("none")

    monkeypatch.setattr(framework, "find", find)
    monkeypatch.setattr(quick_look, "choice", lambda *_: pytest.fail("looked"))
    assert devices.auto_choice()[0] == "twin"
