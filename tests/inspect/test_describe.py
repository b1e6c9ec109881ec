"""One description for every kind of file, JSON-ready."""

import json

import pytest
from inspect_samples import e5_descriptor, h13_file, small_program

from torchane import mil
from torchane.chips import load
from torchane.errors import ParseError, UsageError
from torchane.inspect import mlpackage
from torchane.inspect.describe import Inspection


def described(path, **options) -> dict:
    found = Inspection(path).to_dict(**options)
    return json.loads(json.dumps(found))


@pytest.mark.parametrize("folder", ["mil_compiled", "mil_generated", "mlpackage", "hwx"])
def test_every_shared_file_is_described(shared_data, folder):
    for path in sorted((shared_data / folder).iterdir()):
        found = described(path)
        assert found["size_bytes"] > 0
        assert ("program" in found) == (folder != "hwx")


def test_lists_come_when_they_are_asked_for(tmp_path):
    text = mil.save(small_program(large=True), tmp_path)
    (short,), (long,) = (
        described(text, with_ops=wanted, with_weights=wanted)["program"]["functions"] for wanted in (False, True)
    )
    assert long.keys() - short.keys() == {"lines", "weights"}
    assert [line["kind"] for line in long["lines"]] == ["add", "relu", "mul", "concat", "cast"]


def test_missing_weights_are_said_and_the_rest_is_shown(shared_data):
    found = described(shared_data / "mil_compiled" / "fluidaudio-parakeet_eou-decoder.model.mil")
    assert "weight.bin" in found["weights_missing"]
    assert found["program"]["functions"][0]["parameters"] == 3_936_640


def test_what_apples_summary_says_is_shown(shared_data):
    found = described(shared_data / "mil_compiled" / "mobius-silero-unified_int8.mlmodelc")
    assert found["model"]["computePrecision"] == "Mixed (Float16, Float32, Int32)"


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "3", '"' + "\\ud800" * 3])
def test_a_damaged_summary_is_refused(tmp_path, text):
    mil.save(small_program(), tmp_path)
    (tmp_path / "metadata.json").write_text(text)
    with pytest.raises(ParseError, match=r"metadata\.json"):
        described(tmp_path)


def test_a_chip_says_what_it_refuses(tmp_path):
    found = Inspection(mil.save(small_program(), tmp_path)).on_chip(load("portable"))
    assert {"the output cast", "cast"} <= {refusal["name"] for refusal in found["refusals"]}
    assert all(refusal["reason"] and refusal["do"] and refusal["source"] for refusal in found["refusals"])
    assert found["verdict"] == "refuses" and found["doubts"] == []


def test_a_chip_says_what_is_in_doubt(tmp_path):
    found = Inspection(mil.save(small_program(), tmp_path)).on_chip(load("m4"))
    assert found["ops"]["cast"]["verdict"] == "takes"
    assert {finding["verdict"] for finding in found["doubts"]} <= {"reports disagree", "unknown"}


def test_a_package_does_what_its_text_does(tmp_path):
    text = Inspection(mil.save(small_program(), tmp_path / "text"))
    package = Inspection(mlpackage.save(small_program(), tmp_path / "m.mlpackage"))
    assert text.differences(package) == []
    other = Inspection(mil.save(small_program(large=True), tmp_path / "other"))
    assert {"change": "added", "where": "op 'add' (add)", "what": ""} in text.differences(other)


@pytest.mark.parametrize(("name", "data", "key"), [("a.hwx", h13_file(), "hwx"), ("a.e5", e5_descriptor(), "e5")])
def test_a_file_without_a_program_has_no_chip_and_no_differences(tmp_path, name, data, key):
    (tmp_path / name).write_bytes(data)
    inspection = Inspection(tmp_path / name)
    assert key in described(tmp_path / name)
    with pytest.raises(UsageError, match="--chip needs a program in MIL"):
        inspection.on_chip(load("portable"))
    with pytest.raises(UsageError, match="--diff needs a program in MIL"):
        inspection.differences(inspection)


def test_a_model_of_another_kind_is_named(tmp_path):
    (tmp_path / "m.mlmodel").write_bytes(b"\x08\x04\xa2\x1f\x00")
    inspection = Inspection(tmp_path / "m.mlmodel")
    assert inspection.to_dict()["model"]["kind"] == "neuralNetwork"
    with pytest.raises(UsageError, match="of the kind neuralNetwork"):
        inspection.require_program("--graph")
