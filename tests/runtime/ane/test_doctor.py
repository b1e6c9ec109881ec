"""Doctor on the stand-in, in a process of its own: what it finds on a right engine, a wrong one, one that crashes or hangs."""

import getpass
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from torchane import chips
from torchane.capture.plans import compile_step
from torchane.errors import LegalityError, TorchaneWarning, UsageError
from torchane.mil.build import Builder
from torchane.mil.name_constants import name_constants
from torchane.mil.text import parse, to_text
from torchane.runtime.ane.doctor import examine as examining
from torchane.runtime.ane.doctor import record, report
from torchane.runtime.ane.doctor.checks import all_checks

CHILD = Path(__file__).resolve().parents[2] / "apple" / "doctor_on_standin.py"


@pytest.fixture
def doctor(standin_library, tmp_path):
    """Examines a machine: its report, and what was told on the way."""

    def look(quick=True, arithmetic="exact", fault=""):
        command = [sys.executable, str(CHILD), str(standin_library), str(tmp_path / "daemon"), arithmetic, fault]
        told = []
        found = examining.examine(quick, lambda name, finding: told.append(name), command)
        return report.made(quick, found[2], found[0], found[1]), told

    return look


def test_a_quick_look_at_a_right_engine(doctor):
    made, told = doctor()
    assert not made.missing and made.route == "memory" and made.build == "25A000"
    assert told == ["first light", *(check.name for check in all_checks() if check.quick)]
    assert not made.failed and not made.works  # a quick look is not enough to use it unasked
    assert made.findings["op matmul"]["ok"] is True
    assert made.findings["time of matmul 512"]["TFLOPS"] > 0


@pytest.mark.long
def test_a_full_look_lets_auto_take_the_engine(doctor, tmp_path):
    made, _ = doctor(quick=False)
    assert made.works, made.failed
    assert made.findings["arithmetic product window"]["equal to exact"] == 1.0
    assert made.findings["arithmetic product window"]["equal to engine"] < 1.0
    assert made.findings["probe P1"] == {"identifiers differ": True, "route has identifiers": True}
    assert made.findings["probe P5"]["17 files"]["compiles"] is False
    assert made.findings["probe P5b"] == {"compiles": True, "numbers are right": True}
    assert made.findings["probe P2"] == {"compiles": True, "numbers are right": True}
    assert set(made.findings["probe P6"].values()) == {"absent"}
    assert made.findings["probe P7"]["whole / two halves"] > 0
    assert made.findings["power"]["watts"] == "n/a" or made.findings["power"]["moved"]
    record.keep(made, tmp_path)
    assert record.why_not("25A000", tmp_path) == ""
    assert "25B999" in record.why_not("25B999", tmp_path)


def test_wrong_numbers_are_found_and_named_without_a_person_or_a_place(doctor, tmp_path):
    made, _ = doctor(fault="evaluate:half:0")
    assert {"op conv", "op matmul", "op softmax"} <= set(made.failed)
    text = report.to_text(made)
    assert str(tmp_path) not in text and str(Path.home()) + "/" not in text


def test_an_engine_without_light_is_missing(doctor):
    made, told = doctor(fault="light evaluate:zeros:0")
    assert "did not pass three small programs" in made.missing
    assert told == ["first light"]


def test_a_crash_is_a_finding_and_the_rest_goes_on(doctor):
    """Every child after first light crashes at its second dispatch; each time more is behind it."""
    made, _ = doctor(fault="crash:1")
    assert any("crashed" in found for found in made.findings.values())
    assert set(made.findings) >= {check.name for check in all_checks() if check.quick}
    assert not made.works


@pytest.mark.long
def test_a_hang_is_a_finding(doctor, monkeypatch):
    monkeypatch.setattr(examining, "LIMIT_S", 5.0)
    made, _ = doctor(fault="sleep:1")
    assert any(found.get("hung") for found in made.findings.values())


def test_a_report_names_no_person_and_no_place():
    scrubbed = report.made(True, f"at /Users/ann/Library/x, 0A1B2C3D-0000-1111-2222-333344445555, {getpass.getuser()}", {}, {})
    assert "ann" not in scrubbed.missing and "0A1B2C3D" not in scrubbed.missing


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("nonsense", "no report"), ("[]", "no report"), ("{}", "no report"), ("[" * 100_000, "no report"), (json.dumps({"form": 99, "findings": {}}), "form 99"),
     (json.dumps({"form": 0, "findings": {}, "machine": {"torchane": "0.0.7"}}), r"form 0 \(torchane 0.0.7\)"),
     (json.dumps({"form": 1, "findings": {}, "who": 1}), "no report"),
     *((json.dumps({"form": 1, "quick": True, "missing": "", "machine": {}, "findings": {}} | wrong), "no report of torchane doctor: ")
       for wrong in ({"findings": []}, {"findings": {"op add": 3}}, {"machine": []}, {"machine": {"framework": 3}}, {"quick": "yes"}, {"missing": None}))],
)  # fmt: skip
def test_what_is_no_report_of_this_version_is_refused(tmp_path, text, complaint):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UsageError, match=complaint):
        report.read(tmp_path / "r.json")


def test_without_a_record_the_engine_is_not_taken_unasked(tmp_path):
    assert "has not looked" in record.why_not("25A000", tmp_path)
    record.keep(report.made(False, "", {"build": "25A000"}, {"first light": {"route": "memory"}, "op add": {"ok": False}}), tmp_path)
    assert "op add" in record.why_not("25A000", tmp_path)


def looked_at(**found):
    """A full look at an M4 Max."""
    findings = {"first light": {"route": "memory"}, "op add": {"ok": True}, "time of a dispatch": {"median us": 91.0}, **found}
    made = report.made(False, "", {"build": "25A000"}, findings)
    return replace(made, machine={**made.machine, "chip": "Apple M4 Max", "release": "26.2"})


def test_the_planner_reads_what_was_timed(tmp_path):
    record.keep(looked_at(**{"time of surfaces": {"median us": 900.0, "GB/s": 41.0}, "time of weights": {"median us": 95.0}}), tmp_path)
    found = record.kept_measurements(tmp_path)
    assert (found.machine, found.macos) == ("m4max", "26.2")
    assert found.dispatch_s == pytest.approx(91e-6) and found.surface_bytes_per_s == pytest.approx(41e9)
    assert found.weight_bytes_per_s is None  # it could not be told from the dispatch


def test_a_machine_without_figures_leaves_none(tmp_path):
    made = looked_at()
    record.keep(replace(made, machine={**made.machine, "chip": "Apple M9 Ultra"}), tmp_path)
    assert record.kept_measurements(tmp_path) is None


def test_programs_do_without_what_is_wrong_on_this_machine(tmp_path):
    record.keep(looked_at(**{"op softmax": {"ok": False, "steps from engine": 900}, "op exp": {"ok": False, "crashed": "signal 11"}}), tmp_path)
    wrong = record.wrong_ops("25A000", tmp_path)
    assert wrong == {"softmax": "900 steps of fp16 from the twin", "exp": "it crashed"}
    chip = chips.probed(chips.load("portable"), wrong)
    assert not chip.takes("softmax") and not chip.takes("exp") and chip.takes("tanh")
    assert "900 steps" in chip.op("softmax").why and chip.op("softmax").source == "torchane doctor, on this machine"
    assert record.wrong_ops("25B999", tmp_path) == {}  # another build is another framework


def test_what_is_right_and_less_exact_is_allowed_for(tmp_path):
    found = {"op exp": {"ok": True, "off, steps rms": 3.5}, "op tanh": {"ok": True, "off, steps rms": None}, "op pow": {"ok": False, "off, steps rms": 3.0}}
    record.keep(looked_at(**found), tmp_path)
    assert record.op_steps("25A000", tmp_path) == {"exp": 3.5}
    assert record.op_steps("25B999", tmp_path) == {}


def test_every_op_of_portable_is_in_some_check(engine):
    """The programs that the checks hand to the device."""
    seen = set()
    plain = engine.load

    def load(text, blobs, *, name="main"):
        made = plain(text, blobs, name=name)
        seen.update(op.kind.name for op in parse(text).ops)
        return made

    engine.load = load
    for check in all_checks():
        if check.group in ("ops", "forms"):
            assert check.run(engine)["ok"], check.name
    assert chips.load("portable").kinds <= seen


@pytest.fixture
def looked_at_here(cache_folder, monkeypatch):
    """Doctor's record of this machine, an M4 Max: softmax is wrong on it, concat right, and a convolution with weights of run time, too."""
    monkeypatch.setattr(record, "system_release", lambda: "26.2")
    found = {"op softmax": {"ok": False, "steps from engine": 900}, "doubt concat": {"ok": True}, "doubt conv, weights of run time": {"ok": True}, "doubt tile": {"ok": False}}
    record.keep(looked_at(**found))


@pytest.mark.parametrize("name", ["m4", "m4max"])
def test_what_was_found_here_counts_for_this_machines_chip_in_place_of_reports(looked_at_here, name):
    chip = record.probed(name)
    assert chip.verdict("softmax") is chips.Verdict.REFUSES and chip.op("softmax").source == "torchane doctor, on this Apple M4 Max, build 25A000"
    assert chips.of_machine(name).verdict("concat") is chips.Verdict.DISAGREE and chip.verdict("concat") is chips.Verdict.TAKES
    assert chip.op("concat").conditions == chips.of_machine(name).op("concat").conditions
    assert chip.verdict("tile") is chips.of_machine(name).verdict("tile")  # what others report stays where it is not right
    assert chip.op("conv") == chips.of_machine(name).op("conv")  # a form overrides nothing
    assert set(record.wrong_on(name)) == {"softmax"}


def test_it_counts_for_no_other_chip_and_no_other_release(looked_at_here, monkeypatch):
    assert record.probed("m1") == chips.load("m1") and record.wrong_on("m1") == {}
    assert record.probed("portable") == chips.load("portable")
    monkeypatch.setattr(record, "system_release", lambda: "26.3")
    assert record.probed("m4") == chips.load("m4") and record.wrong_on("m4") == {}


def test_a_model_that_is_compiled_for_this_chip_does_without_what_is_wrong_here(looked_at_here):
    def ops(chip):
        captured = compile_step(lambda: torch.nn.Sequential(torch.nn.Embedding(32, 32), torch.nn.Linear(32, 32), torch.nn.Softmax(-1)), batch_size=1, seq_len=32, options={"chip": chip, "cache": "off"})
        return {kind for plan in captured.plans for program in plan.programs for kind in program.op_counts}

    assert "softmax" in ops("m1") and "softmax" not in ops("m4max")


def test_the_commands_read_it(looked_at_here, tmp_path, monkeypatch, capsys):
    from torchane.cli.inspect import command as inspect_command
    from torchane.cli.plan import command as plan_command

    b = Builder()
    x = b.input("a0_x", (1, 32, 1, 64))
    (tmp_path / "x.mil").write_text(to_text(name_constants(b.program(b.softmax(x=x, axis=-1, name="z0_y")))))
    inspect_command.main([str(tmp_path / "x.mil"), "--chip", "m4", "--json"], standalone_mode=False)
    refusals = json.loads(capsys.readouterr().out)["chip"]["refusals"]
    assert len(refusals) == 1 and "on this machine it is wrong: 900 steps" in refusals[0]["reason"]
    with pytest.raises(LegalityError, match="torchane doctor, on this Apple M4 Max"):
        plan_command.main([str(tmp_path / "x.mil"), "--chip", "m4max"], standalone_mode=False)
    plan_command.main([str(tmp_path / "x.mil"), "--chip", "m4max", "--anyway"], standalone_mode=False)
    assert "Constants of this machine are measured" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", [record.RECORD, record.MEASUREMENTS])
def test_a_record_that_is_cut_short_is_told_and_not_used(looked_at_here, cache_folder, name):
    kept = cache_folder / "ane" / name
    kept.write_text(kept.read_text()[:100])
    if name == record.RECORD:
        with pytest.warns(TorchaneWarning, match="What torchane doctor found on this machine is not used: .*doctor.json is no report"):
            assert record.wrong_ops("25A000") == {}
        assert "has to look again: " in record.why_not("25A000")
    else:
        with pytest.warns(TorchaneWarning, match="What torchane doctor measured on this machine is not used: .*measurements.json"):
            assert record.kept_measurements() is None


@pytest.mark.skipif(sys.platform == "darwin", reason="on a Mac there is an engine to look at")
def test_on_linux_it_says_what_is_missing(capsys, tmp_path, monkeypatch):
    from torchane.cli.doctor import command

    monkeypatch.chdir(tmp_path)
    command.main(["--quick"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "There is no Neural Engine here" in said and "The twin runs the same programs" in said
    assert report.read(tmp_path / "torchane-doctor.json").missing
