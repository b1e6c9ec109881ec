"""Doctor's look at ops beyond `portable`: on the stand-in, which takes all of them, and on one that gets some wrong."""

import pytest
from standin import COMPILER

from torchane import chips
from torchane.errors import AppleError
from torchane.runtime.ane.doctor import report
from torchane.runtime.ane.doctor.checks import all_checks
from torchane.runtime.ane.doctor.doubts import DOUBTS, look


@pytest.mark.parametrize("name", DOUBTS)
def test_a_right_engine_is_found_right(engine, machine, name):
    machine.arithmetic = "engine"
    found = look(engine, DOUBTS[name])
    assert (found["ok"], found["equal to engine"], found["steps from engine"]) == (True, 1.0, 0)
    assert machine.loaded == 0


@pytest.mark.parametrize("name", ["silu", "log", "conv, bias"])
def test_one_that_computes_exactly_is_right_too(engine, machine, name):
    found = look(engine, DOUBTS[name])
    assert found["ok"] and found["equal to exact"] > 0.99 > found["equal to engine"]


def test_numbers_that_are_neither_are_wrong(engine, machine):
    machine.wrong_op = "silu"
    assert look(engine, DOUBTS["silu"])["ok"] is False


def test_no_op_of_portable_is_in_doubt_and_forms_are_of_those():
    portable = chips.load()
    for name in DOUBTS:
        op, _, form = name.partition(", ")
        assert portable.takes(op) == bool(form), name


def test_run_time_weights_and_masks_that_are_ignored_are_found(engine, machine):
    machine.ignores_runtime_conv_weights = machine.ignores_attention_masks = True
    wrong = {name for name in ("conv, weights of run time", "scaled_dot_product_attention", "conv, 3 x 3") if not look(engine, DOUBTS[name])["ok"]}
    assert wrong == {"conv, weights of run time", "scaled_dot_product_attention"}


def test_a_refusal_is_apples_word(engine, machine):
    machine.fail("compile", COMPILER)
    with pytest.raises(AppleError, match="compiler"):
        look(engine, DOUBTS["concat"])


def test_what_poisons_the_process_comes_last(engine, machine):
    """After `tile` the stand-in refuses everything, as one report has it of M3 Max."""
    machine.tile_poisons = True
    assert all_checks()[-1].name == "doubt tile"
    look(engine, DOUBTS["tile"])
    with pytest.raises(AppleError, match="0x1d"):
        look(engine, DOUBTS["abs"])


@pytest.mark.parametrize("ended", [{"crashed": "signal 11"}, {"hung": 120.0}, {"error": "refused"}])
def test_what_torchane_does_not_write_is_no_reason_against_an_engine(ended):
    findings = {check.name: {"ok": True} for check in all_checks() if check.needed} | {"first light": {"route": "memory"}}
    assert report.made(False, "", {}, findings).works
    assert report.made(False, "", {}, {**findings, "doubt tile": {"ok": False, **ended}}).works
    assert not report.made(False, "", {}, {**findings, "form matmul, y turned": {"ok": False, **ended}}).works
