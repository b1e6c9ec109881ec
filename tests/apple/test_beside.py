"""Host work beside dispatches of the `ane` device, through the bridge and the stand-in, whose dispatches can be made to take time, fail and hang.

tests/runtime/test_beside.py has what does not depend on the bridge.
"""

import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from standin import ERROR, HANGS
from test_device import Loaded
from test_fork import in_a_fork, refused

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runtime" / "ane"))

from trainer import Layers, SmallRun

from torchane.errors import DeviceError
from torchane.plan import overlap
from torchane.plan.overlap import one_by_one, overlapped
from torchane.runtime import execute
from torchane.runtime.beside import Beside
from torchane.runtime.run import Run
from torchane.runtime.timeline import Recorder

#: A dispatch, and each staging and unstaging, in the measurement of time; this machine's noise is far below.
DISPATCH_S, HOST_S = 0.08, 0.03


@pytest.fixture(autouse=True)
def _every_byte_counts(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(overlap, "LEAST_BYTES", 1)
    yield
    assert not [one for one in threading.enumerate() if one.name == "torchane-dispatch" and not one.join(1.0) and one.is_alive()]


def trained(engine, order, monkeypatch, ranges: str = "on", **options) -> SmallRun:
    monkeypatch.setattr(execute, "overlapped", order)
    torch._dynamo.reset()
    return SmallRun(engine, ranges, network=Layers, **options)


def hidden(run: SmallRun) -> int:
    return sum(len(turn.beside) for compiled in run.compiled for plan in compiled.plans.values() for turn in overlapped(plan))


def timed(run: SmallRun) -> float:
    start = time.perf_counter()
    run.step(0)
    return time.perf_counter() - start


@pytest.mark.parametrize("ranges", ["on", pytest.param("off", marks=pytest.mark.long)])
def test_steps_have_the_bits_of_steps_one_after_the_other(engine, monkeypatch, ranges):
    ours, theirs = (trained(engine, order, monkeypatch, ranges) for order in (overlapped, one_by_one))
    assert hidden(ours) == 6
    assert ours.losses(3) == theirs.losses(3)
    assert all(torch.equal(one, other) for one, other in zip(ours.model.state_dict().values(), theirs.model.state_dict().values(), strict=True))
    assert not engine.counts["quarantined"]


@pytest.mark.long  # needs a machine that has time
def test_the_time_of_a_step_falls_by_the_work_that_is_hidden(machine, engine, monkeypatch):
    for kind in ("stage", "unstage"):
        real = getattr(Run, kind)
        monkeypatch.setattr(Run, kind, lambda self, step, real=real: (time.sleep(HOST_S), real(self, step))[1])
    took = []
    for order in (one_by_one, overlapped):
        run = trained(engine, order, monkeypatch, "off")
        run.losses(3)  # until every surface is known and nothing is compared with the twin
        machine.dispatch_s = DISPATCH_S
        took.append(min(timed(run) for _ in range(5)))
        machine.dispatch_s = 0.0
    print(f"a step of 6 dispatches of {DISPATCH_S:.2f} s: {took[0]:.3f} s one after the other, {took[1]:.3f} s with {hidden(run)} of {HOST_S:.2f} s beside")
    assert 0.6 < (took[0] - took[1]) / (hidden(run) * HOST_S) < 1.4, took


def test_a_dispatch_that_fails_beside_host_work_says_what_it_says_alone(machine, engine, monkeypatch):
    said = []
    for order in (one_by_one, overlapped):
        run = trained(engine, order, monkeypatch)
        losses = run.losses(2)
        machine.dispatch_s = 0.02
        machine.fail("evaluate", ERROR + 25, times=2)  # it is tried again, once
        with pytest.raises(DeviceError) as raised:
            run.step(0)
        machine.dispatch_s = 0.0
        machine.faults.clear()
        said.append(str(raised.value))
        assert run.losses(2) == losses
    assert said[0] == said[1] and said[0].startswith("00_layers_0: the Neural Engine: ")


def test_a_hang_beside_host_work_is_seen_by_the_watchdog(machine, engine, monkeypatch):
    run = trained(engine, overlapped, monkeypatch)
    losses = run.losses(2)
    expired = []
    monkeypatch.setattr(engine._watchdog, "_expire", lambda message: (expired.append(message), machine.release_hangs()))
    engine.dispatch_s = 0.3
    for made in engine.programs:
        made.ready.watch(engine._watchdog.owner, made.name, made.source.key, engine.dispatch_s)
    machine.fail("evaluate", HANGS)
    assert run.losses(2) == losses  # released, it says that it failed, and is tried again
    assert len(expired) == 1 and "the Neural Engine has not answered" in expired[0]


def test_a_fork_is_told_what_it_is_told_of_a_dispatch_alone(engine):
    loaded = Loaded(engine).run()
    work = []

    def step():
        beside = Beside(engine)
        beside.next([lambda: not work.append("before")], [lambda: not work.append("after")])
        beside.run(loaded.program, loaded.inputs, loaded.outputs)

    said = in_a_fork(lambda: refused(step))
    assert said.startswith("layer3: the Neural Engine: ") and "this process was forked from one that uses Apple's frameworks" in said
    step()
    assert work == ["before", "after"] and loaded.is_right()


def test_the_timeline_has_host_work_below_the_engines(machine, engine, monkeypatch):
    recorder = Recorder()
    run = trained(engine, overlapped, monkeypatch, "off", observers=[recorder])
    run.losses(2)
    machine.dispatch_s = 0.02
    recorder.clear()
    run.step(0)
    machine.dispatch_s = 0.0
    engines = [span for span in recorder.spans if span.track == "engine"]
    inside = [
        span for span in recorder.spans if span.track == "host"
        and any(one.start_s < span.start_s and span.start_s + span.time_s < one.start_s + one.time_s for one in engines)
    ]  # fmt: skip
    assert len(engines) == 6 and len(inside) == hidden(run)
