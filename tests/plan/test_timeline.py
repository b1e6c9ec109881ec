"""The timeline of a predicted step: what follows what, and what it adds up to."""

import json
import xml.etree.ElementTree as ET

import pytest
from trace_format import require_valid_trace

from torchane.abi.ports import PortLayout
from torchane.mil import emit
from torchane.mil.build import Builder
from torchane.plan import Copy, Dispatch, HostCall, Plan, PortSpec, ProgramSpec, Stage, Unstage, pricing_for
from torchane.plan.outline import Outline, outline_of
from torchane.plan.step import price_step
from torchane.plan.timeline import Span, predicted_spans, to_svg, to_trace

WIDE = PortLayout((1, 64, 1, 1024), (0, 1, 2, 3), (1, 64, 1, 1024), 1024)
M4 = pricing_for("m4")


@pytest.fixture(scope="module")
def graph() -> Outline:
    b = Builder()
    text, blobs = emit(b.program(b.exp(x=b.input("x", (1, 64, 1, 1024)))))
    spec = ProgramSpec("00_main", text, blobs, (PortSpec("x", WIDE),), (PortSpec("y", WIDE),), {"exp": 1}, 0)
    steps = (
        HostCall("forward.host0", (("embed<ding>", "rows are looked up"),), (), ("x",)), Stage((Copy("x", WIDE),)),
        Dispatch(0, ("x",), ("h",), "layers.0"), Dispatch(0, ("h",), ("y",), "layers.1"), Unstage((Copy("y", WIDE),)),
    )  # fmt: skip
    return outline_of(Plan("forward", ("x",), ("y",), (spec,), steps))


def test_spans_follow_each_other_in_the_order_of_the_plan(graph):
    spans = predicted_spans([graph], M4)
    assert [span.kind for span in spans] == ["host", "stage", "dispatch", "dispatch", "unstage"]
    for one, other in zip(spans, spans[1:], strict=False):
        assert other.start_s == pytest.approx(one.start_s + one.time_s)


def test_the_tracks_add_up_to_the_price_of_the_step(graph):
    spans, price = predicted_spans([graph, graph], M4), price_step([graph, graph], M4, tokens=2)
    busy = {track: 1e3 * sum(span.time_s for span in spans if span.track == track) for track in ("engine", "host")}
    assert busy == {"engine": pytest.approx(price.engine_ms), "host": pytest.approx(price.staging_ms)}


def test_a_trace_has_a_complete_event_for_each_span_in_microseconds(graph):
    spans = predicted_spans([graph], M4)
    events = json.loads(json.dumps(to_trace(spans, "predicted")))["traceEvents"]
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == {"predicted", "engine", "host"}
    complete = [event for event in events if event["ph"] == "X"]
    assert [event["ts"] for event in complete] == pytest.approx([1e6 * span.start_s for span in spans])
    assert complete[2]["name"] == "layers.0 (00_main)" and complete[2]["dur"] == pytest.approx(1e6 * spans[2].time_s)


def test_a_trace_keeps_to_the_rules_of_its_format(graph):
    require_valid_trace(to_trace(predicted_spans([graph, graph], M4), "predicted"))


def test_a_drawing_is_well_formed_and_says_what_has_no_price(graph):
    drawing = ET.fromstring(to_svg(predicted_spans([graph], M4), "a < b"))
    titles = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}title")]
    assert "embed<ding>: no price" in titles
    assert len([rect for rect in drawing.iter("{http://www.w3.org/2000/svg}rect")]) == 6  # five spans and the ground


def test_nothing_is_an_empty_drawing():
    ET.fromstring(to_svg((), "nothing"))
    assert to_svg([Span("host", "host", "x", 0, 0)], "none").count("<rect") == 2


def test_staging_beside_a_dispatch_is_drawn_below_it_and_taken_from_the_price():
    """4 MiB of weights for the second dispatch, staged while the first runs."""
    large = PortLayout((1, 64, 1, 1 << 15), (0, 1, 2, 3), (1, 64, 1, 1 << 15), 1 << 15)
    b = Builder()
    text, blobs = emit(b.program(b.exp(x=b.input("x", (1, 64, 1, 1 << 15)))))
    spec = ProgramSpec("00_main", text, blobs, (PortSpec("x", large),), (PortSpec("y", large),), {"exp": 1}, 0)
    steps = (Stage((Copy("x", large),)), Dispatch(0, ("x",), ("y",)), Stage((Copy("w", large),)), Dispatch(0, ("w",), ("z",)), Unstage((Copy("z", large),)))
    graph = outline_of(Plan("forward", ("x", "w"), ("z",), (spec,), steps))
    price, spans = price_step([graph], M4, tokens=2), predicted_spans([graph], M4)
    first, beside = spans[1:3] if spans[1].track == "engine" else spans[2:0:-1]
    assert (first.track, beside.track) == ("engine", "host") and beside.start_s == first.start_s
    assert price.hidden_ms == pytest.approx(1e3 * min(first.time_s, beside.time_s)) and price.hidden_ms > 0
    assert price.predicted_ms == pytest.approx(price.engine_ms + price.staging_ms - price.hidden_ms)
    assert price.predicted_ms == pytest.approx(1e3 * max(span.start_s + span.time_s for span in spans))
    require_valid_trace(to_trace(spans, "predicted"))
