"""What engine and host do over a step, as spans of time: predicted from a plan, or recorded (runtime/timeline.py).

    spans = predicted_spans(outlines, pricing_for("m4"))   to_svg(spans, title)      to_trace(spans, title)  ── opens in Perfetto

    engine  ░░░░████████░░░░      host work and dispatches as the runtime carries them out, some beside each other (overlap.py); PyTorch's own ops
    host    ████░██░░██░░███      have no price, and stand as spans of no length
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from torchane.chips.points import machine
from torchane.errors import RunFolderError
from torchane.plan.constants import Pricing
from torchane.plan.cost import program_cost
from torchane.plan.outline import Act, Outline
from torchane.plan.step import STAGED_BYTES_PER_S

TRACKS = ("engine", "host")
_COLOURS = {"stage": "#d08770", "unstage": "#ebcb8b", "host": "#b48ead", "dispatch": "#5e81ac"}
#: Of the drawing, in its own units.
_WIDTH, _LEFT, _ROW, _TOP = 1200, 70, 46, 56


@dataclass(frozen=True)
class Span:
    """What one track does for a while. kind: "stage", "dispatch", "unstage" or "host"."""

    track: str
    kind: str
    name: str
    start_s: float
    time_s: float
    details: Mapping[str, Any] = field(default_factory=dict)


def predicted_spans(graphs: Sequence[Outline], pricing: Pricing) -> tuple[Span, ...]:
    """One run of the graphs, one after the other. The spans of the engine add up to price_step's engine_ms, those of the host to its staging_ms."""
    at, beside_s, spans = 0.0, 0.0, []
    for graph in graphs:
        for track, act, time_s, details in _acts(graph, pricing):
            begun_s = at + beside_s if act.is_beside else at
            spans.append(Span(track, act.kind, act.name, begun_s, time_s, {"graph": graph.name, **details}))
            if act.is_beside:
                beside_s += time_s
            else:
                at, beside_s = at + max(time_s, beside_s), 0.0
    return tuple(sorted(spans, key=lambda span: span.start_s))


def draw(spans: Sequence[Span], title: str, timeline: Path | None, trace: Path | None) -> None:
    """Writes the files that are named. Raises RunFolderError where one cannot be written."""
    try:
        if timeline is not None:
            timeline.write_text(to_svg(spans, title), encoding="utf-8")
        if trace is not None:
            trace.write_text(json.dumps(to_trace(spans, title)), encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{error.filename} cannot be written: {error.strerror}. Choose another file.") from error


def _acts(graph: Outline, pricing: Pricing) -> Iterator[tuple[str, Act, float, dict[str, Any]]]:
    hardware = machine(pricing.name)
    costs = [
        program_cost(
            work.layers, work.bytes_in, work.bytes_out, hardware, pricing.engine, pricing.shared,
            fp32_surfaces=work.fp32_surfaces, in_a_loop=True,
        )
        for work in (program.work for program in graph.programs)
    ]  # fmt: skip
    for act in graph.acts:
        if act.program is not None:
            cost = costs[act.program]
            yield "engine", act, cost.time_s, {"bound": cost.bound, "mj": cost.energy_j * 1e3}
        elif act.kind == "host":
            yield "host", act, 0.0, {"priced": False}
        else:
            yield "host", act, act.size_bytes / STAGED_BYTES_PER_S, {"bytes": act.size_bytes}


def to_trace(spans: Sequence[Span], title: str) -> dict[str, Any]:
    """Trace events as Perfetto and chrome://tracing read them: complete events ("X"), microseconds.
    Source: Trace Event Format, docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU."""
    events: list[dict[str, Any]] = [{"ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": title}}]
    for i, track in enumerate(TRACKS, 1):
        events.append({"ph": "M", "pid": 1, "tid": i, "name": "thread_name", "args": {"name": track}})
    events += [
        {
            "ph": "X", "pid": 1, "tid": TRACKS.index(span.track) + 1, "cat": span.kind, "name": span.name, "ts": span.start_s * 1e6,
            "dur": span.time_s * 1e6, "args": dict(span.details),
        }
        for span in spans
    ]  # fmt: skip
    return {"displayTimeUnit": "ms", "traceEvents": events}


def to_svg(spans: Sequence[Span], title: str) -> str:
    """A drawing with a row for each track; a span's name and milliseconds stand where the mouse is."""
    end = max((span.start_s + span.time_s for span in spans), default=0.0)
    scale = (_WIDTH - _LEFT - 20) / max(end, 1e-12)
    height = _TOP + _ROW * len(TRACKS) + 40
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>', f'<text x="{_LEFT}" y="24" font-size="15">{escape(title)}</text>',
    ]  # fmt: skip
    for i, track in enumerate(TRACKS):
        busy = sum(span.time_s for span in spans if span.track == track)
        lines.append(f'<text x="8" y="{_TOP + _ROW * i + 22}">{track}<title>{busy * 1e3:.4g} ms</title></text>')
    for span in spans:
        x, y = _LEFT + span.start_s * scale, _TOP + _ROW * TRACKS.index(span.track)
        told = f"{span.name}: {span.time_s * 1e3:.4g} ms" if span.details.get("priced", True) else f"{span.name}: no price"
        lines.append(
            f'<rect x="{x:.2f}" y="{y}" width="{max(span.time_s * scale, 0.5):.2f}" height="{_ROW - 10}" fill="{_COLOURS[span.kind]}">'
            f"<title>{escape(told)}</title></rect>"
        )
    for i in range(6):
        x = _LEFT + (_WIDTH - _LEFT - 20) * i / 5
        lines.append(f'<text x="{x:.1f}" y="{height - 16}" text-anchor="middle">{end * i / 5 * 1e3:.4g} ms</text>')
    return "\n".join([*lines, "</svg>", ""])
