"""Two reports of doctor side by side: what is said of them, and in which order."""

import json
from dataclasses import replace

import pytest

from torchane.errors import DeviceError, UsageError
from torchane.runtime.ane.doctor import examine, report
from torchane.runtime.ane.doctor.comparison import compared, to_text


def made(build="25A000", quick=False, machine=(), **findings):
    found = report.made(quick, "", {"build": build}, {"first light": {"route": "memory"}, **findings})
    return replace(found, machine={**found.machine, **dict(machine)})


def lines(one, other):
    return to_text(compared(one, other)).splitlines()


def test_equal_reports_say_the_same():
    one = made(**{"op add": {"ok": True, "steps from engine": 0}})
    assert lines(one, one) == ["Both reports say the same."]


def test_machines_builds_routes_and_versions_are_named():
    one = made(machine={"chip": "Apple M4", "torchane": "0.1.0"})
    other = made("26B1", quick=True, machine={"chip": "Apple M1", "torchane": "0.2.0"})
    other.findings["first light"]["route"] = "e5"
    assert lines(one, other)[:6] == [
        "machines:", "  chip: Apple M4 here, Apple M1 there", "  torchane: 0.1.0 here, 0.2.0 there",
        "  build: 25A000 here, 26B1 there", "  route: memory here, e5 there", "  look: full here, quick there",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"ok": False, "steps from engine": 900}, "wrong (900 steps of fp16 off)"),
        ({"ok": False, "error": "op exp: CompilationFailure"}, "refused (op exp: CompilationFailure)"),
        ({"ok": False, "crashed": "signal 11"}, "it crashed"),
        ({"ok": False, "hung": 120.0}, "it hung"),
    ],
)
def test_a_verdict_that_differs_is_told_once(there, said):
    one, other = made(**{"op exp": {"ok": True, "steps from engine": 1}}), made(**{"op exp": there})
    assert lines(one, other) == ["verdicts:", f"  op exp: right here, {said} there"]
    assert lines(other, one) == ["verdicts:", f"  op exp: {said} here, right there"]


def test_times_are_told_as_a_ratio_even_where_they_are_alike():
    one = made(**{"time of matmul 512": {"median us": 120.0, "TFLOPS": 2.0}, "time of a dispatch": {"median us": 100.0}})
    other = made(**{"time of matmul 512": {"median us": 60.0, "TFLOPS": 4.0}, "time of a dispatch": {"median us": 98.0}})
    assert lines(one, other) == [
        "times:", "  time of matmul 512  us: 120.0 here, 60.0 there: 2.00 times as long here", "  time of a dispatch  us: 100.0 here, 98.0 there: about the same",
    ]  # fmt: skip
    assert [one.ratio for one in compared(one, other)] == [2.0, pytest.approx(100 / 98)]


def test_other_values_are_told_one_by_one():
    one = made(**{"probe P5": {"17 files": {"compiles": False}}, "op exp": {"ok": True, "equal to engine": 1.0}})
    other = made(**{"probe P5": {"17 files": {"compiles": True}}, "op exp": {"ok": True, "equal to engine": 0.75}})
    assert lines(one, other) == [
        "values:", "  probe P5  17 files: {'compiles': False} here, {'compiles': True} there", "  op exp  equal to engine: 1.0 here, 0.75 there",
    ]  # fmt: skip


def test_checks_of_one_report_alone_are_named_and_not_compared():
    one = made(**{"op add": {"ok": True}, "op exp": {"left out": "there was no time"}})
    other = made(**{"op exp": {"ok": False}, "op of a later version": {"ok": True}})
    assert lines(one, other) == ["checks:", "  only here: op add", "  only there: op exp, op of a later version"]


@pytest.fixture
def doctor(tmp_path, monkeypatch, capsys):
    """The command on a machine with this report; its output."""
    from torchane.cli.doctor import command

    def run(mine, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(examine, "examine", lambda quick, tell: ({"build": mine.build}, mine.findings, mine.missing))
        command.main(list(arguments), standalone_mode=False)
        return capsys.readouterr()

    return run


def test_the_command_tells_it_and_keeps_it_in_json(doctor, tmp_path):
    (tmp_path / "other.json").write_text(report.to_text(made("26B1", **{"op exp": {"ok": False, "steps from engine": 900}})))
    mine = made(**{"op exp": {"ok": True}})
    assert "Compared with other.json:\nmachines:\n  build: 25A000 here, 26B1 there\nverdicts:\n  op exp: right here, wrong" in doctor(mine, "--compare", "other.json").out
    said = json.loads(doctor(mine, "--compare", "other.json", "--json").out)
    assert [one["check"] for one in said["compared"]] == ["build", "op exp"]


def test_a_report_of_another_version_is_refused_before_anything_is_probed(doctor, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"form": 7, "findings": {}, "machine": {"torchane": "9.1"}}))
    with pytest.raises(UsageError, match=r"other.json is a report of form 7 \(torchane 9.1\), and this version of torchane"):
        doctor(None, "--compare", "other.json")


def test_a_report_that_could_not_be_written_is_refused_before_anything_is_probed(doctor):
    with pytest.raises(UsageError, match="absent/r.json cannot be written, and the report would be lost"):
        doctor(None, "--report", "absent/r.json")


def test_a_cache_that_cannot_be_written_costs_no_report(doctor, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHANE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="doctor's record cannot be kept: .*TORCHANE_CACHE"):
        doctor(made())
    assert report.read(tmp_path / "torchane-doctor.json").route == "memory"


def test_the_others_report_is_not_written_over(doctor, tmp_path):
    other = tmp_path / "torchane-doctor.json"
    other.write_text(report.to_text(made("26B1")))
    with pytest.raises(UsageError, match="torchane-doctor.json is where this machine's report would be written"):
        doctor(None, "--compare", "torchane-doctor.json")
    assert report.read(other).build == "26B1"
    assert "26B1 there" in doctor(made(), "--compare", "torchane-doctor.json", "--report", "mine.json").out
