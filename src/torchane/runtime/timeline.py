"""The timeline of real runs: an observer that notes when each step began and ended.

    recorder = Recorder()
    model = torch.compile(model, backend="ane", options={"observers": (recorder,)})
    ..                                                       one step
    json.dump(to_trace(recorder.spans, "measured"), file)    plan/timeline.py draws it, as it draws a prediction

The engine's track has the device's own seconds of each dispatch; what the executor does around it is the host's, between the spans. Host work
that goes on beside a dispatch stands below it.
"""

import time
from bisect import insort

from torchane.plan import Dispatch
from torchane.plan.outline import named
from torchane.plan.timeline import Span
from torchane.runtime.observers import Moment, Observer


class Recorder(Observer):
    """spans: of every step since the recorder was made or cleared, in seconds since the first of them, in the order in which they began."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.spans: list[Span] = []
        self._origin_s: float | None = None
        self._began_s: list[float] = []

    def before(self, moment: Moment) -> None:
        self._began_s.append(time.perf_counter())
        if self._origin_s is None:
            self._origin_s = self._began_s[0]

    def after(self, moment: Moment) -> None:
        ended_s = time.perf_counter()
        kind, name = named(moment.step, moment.plan)
        details = {"graph": moment.plan.name, **({"error": str(moment.error)} if moment.error is not None else {})}
        began_s = self._began_s.pop()
        begun_s = began_s - (self._origin_s or 0.0)
        if not isinstance(moment.step, Dispatch):
            self._add(Span("host", kind, name, begun_s, ended_s - began_s, details))
            return
        at = begun_s  # runs of one dispatch follow each other; when each began is not noted
        for number, run in enumerate(moment.runs):
            again = {"again": number} if number else {}
            self._add(Span("engine", kind, name, at, run.time_s, {**details, **again}))
            at += run.time_s

    def _add(self, span: Span) -> None:
        insort(self.spans, span, key=lambda one: one.start_s)


class LastStep(Recorder):
    """last: the spans of the newest forward whose backward has ended, () before there is one. Forwards without a backward are not kept."""

    last: tuple[Span, ...] = ()

    def before(self, moment: Moment) -> None:
        if moment.plan.name == "forward" and moment.step is moment.plan.steps[0]:
            self.clear()
        super().before(moment)

    def after(self, moment: Moment) -> None:
        super().after(moment)
        if moment.plan.name == "backward" and moment.step is moment.plan.steps[-1]:
            self.last = tuple(self.spans)
