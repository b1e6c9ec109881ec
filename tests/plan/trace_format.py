"""The rules of trace events that Perfetto and chrome://tracing hold a file to.

Source: Trace Event Format, docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: "JSON Object Format", "Complete Events",
"Metadata Events". Perfetto drops events that it cannot place: those of a track that overlap without one holding the other.
"""

import json
import math
from collections import defaultdict
from typing import Any

_METADATA = {"process_name": "name", "thread_name": "name", "process_labels": "labels", "process_sort_index": "sort_index", "thread_sort_index": "sort_index"}
#: Of sums of microseconds in double.
_ROUNDING = 1e-6


def require_valid_trace(trace: dict[str, Any]) -> None:
    """Fails where a rule is broken, and names the event."""
    trace = json.loads(json.dumps(trace, allow_nan=False))
    assert trace["displayTimeUnit"] in ("ms", "ns")
    named, tracks = {"process_name": set(), "thread_name": set()}, defaultdict(list)
    for event in trace["traceEvents"]:
        assert event["ph"] in ("X", "M"), event
        assert type(event["pid"]) is int and type(event["tid"]) is int, event
        assert isinstance(event["name"], str) and event["name"] and isinstance(event.get("args", {}), dict), event
        if event["ph"] == "M":
            assert isinstance(event["args"][_METADATA[event["name"]]], str | int), event
            assert "ts" not in event and "dur" not in event, event
            if event["name"] in named:
                named[event["name"]].add((event["pid"],) if event["name"] == "process_name" else (event["pid"], event["tid"]))
            continue
        assert isinstance(event.get("cat", ""), str), event
        for key in ("ts", "dur"):
            assert type(event[key]) in (int, float) and math.isfinite(event[key]) and event[key] >= 0, event
        tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert {(pid,) for pid, _ in tracks} <= named["process_name"] and set(tracks) <= named["thread_name"]
    for spans in tracks.values():
        open_until: list[float] = []
        for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_until and open_until[-1] <= start + _ROUNDING:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + _ROUNDING, f"{start} to {end} begins in a span that ends at {open_until[-1]}"
            open_until.append(end)
