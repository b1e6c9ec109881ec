"""The shipped constants: what they say of held-out points, and what a machine's own measurements change."""

import json

import pytest

from torchane.chips.points import points
from torchane.errors import UsageError
from torchane.plan.constants import (
    ENGINE_OF,
    KNOWN_FORMS,
    ONLY_THROUGH_E5RT,
    SEEN,
    interval,
    load_fitted,
    pricing_for,
    read_measurements,
)


def test_constants_are_few():
    fitted = load_fitted()
    assert len(vars(fitted.shared)) <= 6
    assert all(len(vars(engine)) <= 3 for engine in fitted.engines.values())
    assert set(ENGINE_OF.values()) == set(fitted.engines)


def test_what_is_said_to_be_in_the_data_is():
    fitted = [point for point in points() if not point.held_out and not point.unusable]
    assert {point.chip for point in fitted} == SEEN
    assert {layer.form for point in fitted for layer in point.layers} == KNOWN_FORMS
    in_memory = {ENGINE_OF[point.chip] for point in fitted if point.route == "memory" and point.layers}
    assert set(ENGINE_OF.values()) - in_memory == ONLY_THROUGH_E5RT


def test_held_out_points_are_met():
    errors = load_fitted().errors
    assert errors["held_out"].median_error <= 0.15
    assert errors["held_out"].beyond_two <= 2
    assert errors["energy_held_out"].median_error <= 0.2


def test_a_chip_outside_the_data_says_so_and_its_interval_is_wider():
    known, outside = pricing_for("m4"), pricing_for("m4pro")
    assert known.unseen == "" and outside.unseen == "no published figure of m4pro was fitted: priced as m4"
    assert outside.engine == known.engine
    low, high = interval(known, False)
    wide_low, wide_high = interval(outside, False)
    assert wide_low <= low < 1 < high < wide_high
    form_low, form_high = interval(known, True)
    assert form_low < low and form_high > high


def record(tmp_path, **fields):
    path = tmp_path / "m4.json"
    path.write_text(json.dumps({"format": "torchane measurements", "version": 1, "machine": "m4", **fields}))
    return path


def test_what_was_measured_takes_the_place_of_what_was_fitted(tmp_path):
    path = record(tmp_path, macos="26.2", dispatch_s=5e-5, error=[0.9, 1.1])
    pricing = pricing_for("m4", read_measurements(path))
    assert pricing.engine.dispatch_s == 5e-5
    assert pricing.engine.weight_bytes_per_s == pricing_for("m4").engine.weight_bytes_per_s
    assert interval(pricing, False) == (0.9, 1.1)


def test_a_whole_record_takes_a_machine_into_the_data(tmp_path):
    path = record(tmp_path, machine="m4pro", dispatch_s=5e-5, surface_bytes_per_s=3e10, weight_bytes_per_s=1e11)
    assert pricing_for("m4pro", read_measurements(path)).unseen == ""


@pytest.mark.parametrize(("fields", "said"), [
    ({"machine": "m99"}, "no chip is called 'm99'"),
    ({"machine": None}, "machine is None"),
    ({"format": "other"}, 'with "format": "torchane measurements"'),
    ({"version": 2}, "its version is 2"),
    ({"dispatch_s": 0}, "dispatch_s is 0, and must be a number above 0"),
    ({"dispatch_s": True}, "dispatch_s is True"),
    ({"weight_bytes_per_s": "fast"}, "weight_bytes_per_s is 'fast'"),
    ({"dispatch_s": float("nan")}, "dispatch_s is nan"),
    ({"error": [1.1, 0.9]}, "the lowest first"),
    ({"error": 3}, "must be two numbers"),
    ({"dispach_s": 1e-4}, "unknown fields dispach_s"),
])  # fmt: skip
def test_a_record_that_is_wrong_names_the_field(tmp_path, fields, said):
    with pytest.raises(UsageError) as caught:
        read_measurements(record(tmp_path, **fields))
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\udcff"])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(UsageError, match="no record of measurements"):
        read_measurements(path)


def test_a_record_of_another_machine_is_refused(tmp_path):
    with pytest.raises(UsageError, match="the record is of m4, and --chip says m5"):
        pricing_for("m5", read_measurements(record(tmp_path)))
