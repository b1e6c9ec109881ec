"""What engine and host do over a step, as spans of time: predicted from a plan, or recorded (runtime/timeline.py).

    spans = predicted_spans(plans, pricing_for("m4"))      to_svg(spans, title)      to_trace(spans, title)  ── opens in Perfetto

    engine  ░░░░████░████░░░      host work and dispatches follow each other as the runtime carries them out; PyTorch's own ops
    host    ████░░░░█░░░░███      have no price, and stand as spans of no length
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from torchane.chips.points import machine
from torchane.mil.text import parse
from torchane.plan.constants import Pricing
from torchane.plan.cost import program_cost
from torchane.plan.plan import Dispatch, HostCall, Plan, Stage, Step, Unstage
from torchane.plan.step import STAGED_BYTES_PER_S
from torchane.plan.work import ProgramWork, work_of

TRACKS = ("engine", "host")
_KINDS: Mapping[type, str] = {Stage: "stage", Dispatch: "dispatch", Unstage: "unstage", HostCall: "host"}
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


def predicted_spans(plans: Sequence[Plan], pricing: Pricing) -> tuple[Span, ...]:
    """One run of the plans, one after the other. The spans of the engine add up to price_step's engine_ms, those of the host to its staging_ms."""
    at, spans = 0.0, []
    for plan in plans:
        for track, kind, name, time_s, details in _steps(plan, pricing):
            spans.append(Span(track, kind, name, at, time_s, {"graph": plan.name, **details}))
            at += time_s
    return tuple(spans)


def _steps(plan: Plan, pricing: Pricing) -> Iterator[tuple[str, str, str, float, dict[str, Any]]]:
    works: dict[int, ProgramWork] = {}
    for step in plan.steps:
        kind, name = named(step, plan)
        if isinstance(step, Dispatch):
            if step.program not in works:
                spec = plan.programs[step.program]
                works[step.program] = work_of(parse(spec.text, spec.name))
            work = works[step.program]
            cost = program_cost(
                work.layers, work.bytes_in, work.bytes_out, machine(pricing.name), pricing.engine, pricing.shared,
                fp32_surfaces=work.fp32_surfaces, in_a_loop=True,
            )  # fmt: skip
            yield "engine", kind, name, cost.time_s, {"bound": cost.bound, "mj": cost.energy_j * 1e3}
        elif isinstance(step, HostCall):
            yield "host", kind, name, 0.0, {"priced": False}
        else:
            size = sum(copy.layout.type.size_bytes for copy in step.copies if not copy.is_constant)
            yield "host", kind, name, size / STAGED_BYTES_PER_S, {"bytes": size}


def named(step: Step, plan: Plan) -> tuple[str, str]:
    """Its kind, and a name for people."""
    kind = _KINDS[type(step)]
    if isinstance(step, Dispatch):
        return kind, f"{step.where or 'main'} ({plan.programs[step.program].name})"
    if isinstance(step, HostCall):
        return kind, ", ".join(dict.fromkeys(name for name, _ in step.ops)) or step.key
    return kind, f"{kind} {len(step.copies)} values"


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
