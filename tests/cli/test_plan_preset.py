"""A step priced for each machine: what is compared, what is merged, and what is refused with what would fit. Plans are made by hand."""

import json
from dataclasses import replace

import pytest

from torchane.chips.points import Layer
from torchane.cli import plan_preset
from torchane.cli.plan_preset import Step, price_preset
from torchane.cli.planned import Request
from torchane.errors import DeviceError, LegalityError, UsageError
from torchane.models.presets import preset
from torchane.plan import pricing_for
from torchane.plan.memory import RESERVE_BYTES, Forecast
from torchane.plan.outline import Act, Outline, Outlined, PlannedStep
from torchane.plan.work import OpWork, ProgramWork

CONFIG = replace(preset("tiny").config, max_position_embeddings=1 << 17)
STEP = Step("mine", CONFIG, 2, 64, 1, None, "none", "inputs", "on", None)
M4 = pricing_for("m4")
#: Columns of the one product, and gigabytes saved, for each sequence.
WAYS = {"none": (3000, 4), "half": (2000, 2), "all": (4000, 1)}


@pytest.fixture
def asked(monkeypatch) -> list[Request]:
    """Every request; its plan is one product, as wide as there are sequences."""
    requests: list[Request] = []

    def plan(request: Request) -> PlannedStep:
        requests.append(request)
        columns, saved = WAYS[request.options["recompute"]]
        work = ProgramWork((OpWork("mm", "matmul", (Layer("linear", 1, 2048, 2048, columns * request.batch_size),)),), 1 << 20, 1 << 20, False)
        acts = (Act("stage", "stage 1 values", size_bytes=1 << 20), Act("dispatch", "main", 0, "text"))
        memory = Forecast(1 << 30, 0, 0, 0, saved * request.batch_size << 30, 0)
        return PlannedStep((Outline("forward", (Outlined("00_main", work, 0),), acts),), memory, 1.0 if request.batch_size * request.seq_len <= 32768 else 0.3)

    monkeypatch.setattr(plan_preset, "planned_steps", lambda requests, **cache: [plan(request) for request in requests])
    return requests


def test_auto_takes_what_is_predicted_to_take_least(asked):
    (price,), _ = price_preset(replace(STEP, recompute="auto"), [M4])
    assert price["recompute"] == "half"
    assert price["predicted_ms"] == price["recompute_ms"]["half"] == min(price["recompute_ms"].values())
    alone = {way: price_preset(replace(STEP, recompute=way), [M4])[0][0]["predicted_ms"] for way in WAYS}
    assert price["recompute_ms"] == alone


def test_auto_leaves_out_what_does_not_fit(asked):
    room = (1 << 30) + RESERVE_BYTES + (2 << 30)  # "all" of two sequences
    (price,), _ = price_preset(replace(STEP, recompute="auto", memory_gb=room / 2**30), [M4])
    assert (price["recompute"], list(price["recompute_ms"])) == ("all", ["all"])


def test_auto_leaves_out_what_the_host_would_do_and_asked_for_by_name_it_is_refused(asked, monkeypatch):
    plan, shares = plan_preset.planned_steps, {"half": 0.95}
    monkeypatch.setattr(
        plan_preset, "planned_steps", lambda requests, **cache: [replace(plan([one])[0], share_in_programs=shares.get(one.options["recompute"], 1.0)) for one in requests]
    )
    (price,), _ = price_preset(replace(STEP, recompute="auto"), [M4])
    assert (price["recompute"], list(price["recompute_ms"])) == ("none", ["none", "all"])
    assert list(price["recompute_refused"]) == ["half"] and "95%" in price["recompute_refused"]["half"]
    with pytest.raises(LegalityError, match="95%.*Try --recompute none"):
        price_preset(replace(STEP, recompute="half"), [M4])


def test_where_none_fits_the_batch_that_would_is_named(asked):
    with pytest.raises(DeviceError, match="Try --batch-size 1"):
        price_preset(replace(STEP, recompute="auto", memory_gb=3), [M4])


def test_micro_steps_are_one_batch_and_priced_beside_calls_for_each(asked):
    (price,), _ = price_preset(replace(STEP, grad_accum=4), [M4])
    assert [request.batch_size for request in asked] == [8, 2]
    (each,), _ = price_preset(replace(STEP), [M4])
    assert price["tokens"] == 4 * each["tokens"]
    assert price["apart"]["predicted_ms"] == pytest.approx(4 * each["predicted_ms"]) and price["apart"]["predicted_ms"] > price["predicted_ms"]
    assert price["apart"]["ms_per_256_tokens"] == pytest.approx(each["ms_per_256_tokens"])
    assert price["apart"]["dispatches_per_step"] == 4 and price["dispatches_per_step"] == 1
    assert json.dumps(price)


def test_one_micro_step_has_nothing_beside_it(asked):
    (price,), _ = price_preset(replace(STEP), [M4])
    assert price["apart"] is None and len(asked) == 1


def test_machines_of_the_same_chip_and_constants_share_a_plan(asked):
    price_preset(replace(STEP), [M4, pricing_for("m4pro"), pricing_for("m4max")])
    assert [request.options["chip"] for request in asked] == ["m4", "m4max"]


@pytest.mark.parametrize(("chip", "seq_len", "said"), [
    ("m1", 20_000, "Try --seq-len 16384, or --chip m4."),
    ("m4", 40_000, "Try --seq-len 32768."),
])  # fmt: skip
def test_a_sequence_longer_than_the_chip_takes_is_said_before_anything_is_planned(asked, monkeypatch, chip, seq_len, said):
    monkeypatch.setattr(plan_preset, "free_bytes", lambda: 1 << 40)
    with pytest.raises(LegalityError, match="scores have a column for each token") as caught:
        price_preset(replace(STEP, seq_len=seq_len), [pricing_for(chip)])
    assert said in str(caught.value) and not asked


def test_masks_that_this_machine_cannot_hold_are_refused_before_they_are_made(asked, monkeypatch):
    monkeypatch.setattr(plan_preset, "free_bytes", lambda: 1 << 30)
    with pytest.raises(DeviceError, match="Try --seq-len ") as caught:
        price_preset(replace(STEP, seq_len=16_384), [M4])
    fits = int(str(caught.value).rpartition("--seq-len ")[2].split(",")[0])
    assert not asked and fits % 32 == 0
    price_preset(replace(STEP, seq_len=fits, batch_size=1), [M4])


@pytest.mark.parametrize(("accum", "said"), [(1, "Try --batch-size 512."), (3, "Try --grad-accum 1.")])
def test_a_batch_that_the_chip_does_not_take_names_the_one_that_it_would(asked, accum, said):
    with pytest.raises(LegalityError, match=said):
        price_preset(replace(STEP, batch_size=400 if accum > 1 else 1000, grad_accum=accum), [M4])


def test_few_bits_are_refused_before_anything_is_planned(asked):
    with pytest.raises(UsageError, match="is not known to take int8 constants"):
        price_preset(replace(STEP, lora=8, frozen="int8"), [M4, pricing_for("m2")])
    assert not asked
