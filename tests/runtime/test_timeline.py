"""A recorded step has the spans of its plan, in order, within the time that it took."""

import time

import torch
from torch import nn
from trace_format import require_valid_trace

from torchane.capture import backend
from torchane.plan.timeline import to_trace
from torchane.runtime.timeline import LastStep, Recorder


def test_a_step_is_recorded_as_its_plans_say() -> None:
    torch._dynamo.reset()
    model, recorder = nn.Linear(32, 32), Recorder()
    compiled = torch.compile(lambda x: model(x), backend=backend.ane, options={"device": "twin", "observers": (recorder,)})
    x = torch.randn(32, 32)
    compiled(x).sum().backward()
    recorder.clear()
    begun = time.perf_counter()
    compiled(x).sum().backward()
    took = time.perf_counter() - begun
    plans = backend.COMPILED[-1].plans.values()
    assert [span.details["graph"] for span in recorder.spans if span.kind == "dispatch"] == [p.name for p in plans for _ in p.dispatches]
    assert len(recorder.spans) == sum(len(plan.steps) for plan in plans)
    starts = [span.start_s for span in recorder.spans]
    assert starts == sorted(starts) and starts[0] == 0
    assert sum(span.time_s for span in recorder.spans) <= took
    require_valid_trace(to_trace(recorder.spans, "measured"))


def test_of_many_steps_the_last_with_a_backward_is_kept() -> None:
    torch._dynamo.reset()
    model, recorder = nn.Linear(32, 32), LastStep()
    compiled = torch.compile(lambda x: model(x), backend=backend.ane, options={"device": "twin", "observers": (recorder,)})
    x = torch.randn(32, 32)
    compiled(x)
    assert recorder.last == ()
    compiled(x).sum().backward()
    first = recorder.last
    compiled(x).sum().backward()
    compiled(x)  # as a validation does
    assert len(recorder.last) == len(first) == sum(len(plan.steps) for plan in backend.COMPILED[-1].plans.values())
    assert recorder.last != first and {span.details["graph"] for span in recorder.last} == {"forward", "backward"}
