"""The tolerances of a device's verification are what the script derives from the engine's arithmetic."""

import json
import sys
from importlib import resources
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def stored():
    return json.loads(resources.files("torchane.runtime").joinpath("tolerances.json").read_text(encoding="utf-8"))["ops"]


def test_the_file_is_what_the_script_derives(stored, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    import derive_tolerances

    found = derive_tolerances.derive()
    assert set(found) == set(stored)
    for op, values in found.items():
        assert {key: value for key, value in stored[op].items() if key != "evidence"} == {key: pytest.approx(value, rel=6e-3) for key, value in values.items()}


def test_products_are_allowed_a_few_units_per_term(stored):
    """A product is at most 2 units of 2^-16 off, doubled for margin."""
    assert 0 < stored["matmul"]["atol_per_term"] < 4 * 2.0**-16


def test_ops_that_select_an_operand_must_be_equal(stored):
    assert all(stored[op][key] == 0 for op in ("maximum", "abs", "reduce_max") for key in ("rtol", "atol", "atol_per_term"))


def test_an_assumed_rule_says_that_its_tolerance_is_assumed(stored):
    assert stored["pow"]["evidence"] == "assumed" and stored["matmul"]["evidence"] == "proven"


def test_functions_by_table_are_allowed_their_known_errors(stored):
    assert stored["sigmoid"]["atol"] + stored["sigmoid"]["rtol"] > 3.3e-3
    assert stored["add"]["rtol"] <= 2 * 2.0**-10
