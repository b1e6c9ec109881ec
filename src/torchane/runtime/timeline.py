"""The timeline of real runs: an observer that notes when each step began and ended.

    recorder = Recorder()
    model = torch.compile(model, backend="ane", options={"observers": (recorder,)})
    ..                                                       one step
    json.dump(to_trace(recorder.spans, "measured"), file)    plan/timeline.py draws it, as it draws a prediction

The engine's track has the device's own seconds of each dispatch; what the executor does around it is the host's, between the spans.
"""

import time

from torchane.plan import Dispatch
from torchane.plan.timeline import Span, named
from torchane.runtime.observers import Moment, Observer


class Recorder(Observer):
    """spans: of every step since the recorder was made or cleared, in seconds since the first of them."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.spans: list[Span] = []
        self._origin_s: float | None = None
        self._began_s = 0.0

    def before(self, moment: Moment) -> None:
        self._began_s = time.perf_counter()
        if self._origin_s is None:
            self._origin_s = self._began_s

    def after(self, moment: Moment) -> None:
        ended_s = time.perf_counter()
        kind, name = named(moment.step, moment.plan)
        details = {"graph": moment.plan.name, **({"error": str(moment.error)} if moment.error is not None else {})}
        begun_s = self._began_s - (self._origin_s or 0.0)
        if not isinstance(moment.step, Dispatch):
            self.spans.append(Span("host", kind, name, begun_s, ended_s - self._began_s, details))
            return
        at = begun_s  # runs of one dispatch follow each other; when each began is not noted
        for number, run in enumerate(moment.runs):
            again = {"again": number} if number else {}
            self.spans.append(Span("engine", kind, name, at, run.time_s, {**details, **again}))
            at += run.time_s
