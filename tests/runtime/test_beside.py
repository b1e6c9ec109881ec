"""Host work beside dispatches: the bits of one after the other, errors as there, and time that is saved.

The device is the twin with a dispatch that waits besides, as the bridge waits for an engine. tests/apple/test_beside.py has the bridge.
"""

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "ane"))

from trainer import Layers
from trainer import SmallRun as Trained

from torchane.errors import DeviceError
from torchane.plan import Dispatch, Stage, Unstage, overlap
from torchane.plan.overlap import one_by_one, overlapped
from torchane.runtime import execute
from torchane.runtime.beside import Beside
from torchane.runtime.observers import Observer, Timer
from torchane.runtime.run import Run
from torchane.runtime.timeline import Recorder
from torchane.runtime.twin import TwinDevice


class Waiting(TwinDevice):
    """The twin, whose dispatches take longer than its kernels do. then: called at the end of each, before the device is free."""

    frees_processor = True

    def __init__(self) -> None:
        super().__init__()
        self.wait_s = 0.0
        self.first: Callable[[], None] = lambda: None
        self.then: Callable[[], None] = lambda: None
        self.threads: set[str] = set()

    def run(self, program, inputs, outputs):
        self.threads.add(threading.current_thread().name)
        self.first()
        super().run(program, inputs, outputs)
        time.sleep(self.wait_s)
        self.then()


class Telling(Observer):
    """Which steps began while a dispatch ran, and what they ended with."""

    def __init__(self) -> None:
        self.running = 0
        self.inside: list[type] = []
        self.errors: list[tuple[type, str]] = []

    def before(self, moment):
        if isinstance(moment.step, Dispatch):
            self.running += 1
        elif self.running:
            self.inside.append(type(moment.step))

    def after(self, moment):
        self.running -= isinstance(moment.step, Dispatch)
        if moment.error is not None:
            self.errors.append((type(moment.step), str(moment.error)))


TOLD = Telling()


@pytest.fixture(scope="module", autouse=True)
def _every_byte_counts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "LEAST_BYTES", 1)
        yield


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    for left in [one for one in threading.enumerate() if one.name == "torchane-dispatch"]:
        left.join(1.0)  # one whose dispatch has ended is about to
        assert not left.is_alive()


def small_run(device: TwinDevice, ranges: str = "off", observers: Sequence[Observer] = ()) -> Trained:
    torch._dynamo.reset()
    return Trained(device, ranges, observers, Layers)


@pytest.fixture(scope="module")
def compiled() -> Trained:
    return small_run(Waiting(), observers=[TOLD])


@pytest.fixture
def run(compiled: Trained) -> Iterator[Trained]:
    """Its device waits for nothing, before the test and after it."""
    yield compiled
    compiled.device.wait_s, TOLD.running = 0.0, 0
    compiled.device.first = compiled.device.then = lambda: None
    TOLD.inside.clear()


def plan_of(run: Trained, name: str):
    return next(plan for compiled in run.compiled for plan in [compiled.plans[name]])


def beside(plan) -> list[int]:
    return [index for turn in overlapped(plan) for index in turn.beside]


@pytest.mark.parametrize("ranges", ["on", "off"])
def test_steps_have_the_bits_of_steps_one_after_the_other(ranges, monkeypatch):
    ours = small_run(Waiting(), ranges)
    assert beside(plan_of(ours, "forward")) and beside(plan_of(ours, "backward"))
    found = ours.losses(4), {name: value.clone() for name, value in ours.model.state_dict().items()}
    assert "torchane-dispatch" in ours.device.threads
    monkeypatch.setattr(execute, "overlapped", one_by_one)
    theirs = small_run(Waiting(), ranges)
    assert theirs.losses(4) == found[0] and theirs.device.threads == {"MainThread"}
    assert all(torch.equal(value, found[1][name]) for name, value in theirs.model.state_dict().items())


def test_the_twin_runs_one_step_after_the_other():
    assert not TwinDevice.frees_processor


def test_a_dispatch_that_fails_says_what_it_said_and_leaves_no_thread(run):
    wanted = run.losses(2)

    def fail():
        raise DeviceError("layer: the Neural Engine is gone.")

    run.device.wait_s, run.device.then = 0.01, fail
    with pytest.raises(DeviceError, match=r"^layer: the Neural Engine is gone\.$"):
        run.step(0)
    run.device.then = lambda: None
    assert run.losses(2) == wanted  # nothing is left of it


def raising_inside(monkeypatch, kind: str, error: BaseException) -> None:
    real = getattr(Run, kind)

    def step(self, given):
        if TOLD.running:
            raise error
        real(self, given)

    monkeypatch.setattr(Run, kind, step)


@pytest.mark.parametrize(("kind", "both", "wanted"), [("stage", False, "host"), ("unstage", False, "host"), ("stage", True, "device"), ("unstage", True, "host")])
def test_of_two_errors_the_one_is_raised_that_comes_first_in_the_plan(run, kind, both, wanted, monkeypatch):
    """What is staged beside a dispatch comes behind it in the plan, and what leaves beside it before it."""
    losses = run.losses(2)
    graph = "forward" if kind == "stage" else "backward"
    assert any(isinstance(plan_of(run, graph).steps[i], Stage if kind == "stage" else Unstage) for i in beside(plan_of(run, graph)))
    with monkeypatch.context() as patch:
        raising_inside(patch, kind, ValueError("host"))
        hit = []
        real = Waiting.run

        def failing(self, program, inputs, outputs):
            real(self, program, inputs, outputs)
            if both and TOLD.running and threading.current_thread().name == "torchane-dispatch" and (kind == "stage" or TOLD.inside[-1:] == [Unstage]):
                hit.append(program.name)
                raise DeviceError("device")

        patch.setattr(Waiting, "run", failing)
        run.device.wait_s = 0.02
        with pytest.raises((ValueError, DeviceError), match=f"^{wanted}$"):
            run.step(0)
        assert bool(hit) == both
    assert run.losses(2) == losses


def test_ctrl_c_waits_for_the_dispatch_and_then_ends_the_step(run):
    begun, ended = [], []

    def interrupt():
        begun.append(threading.current_thread().name)
        if begun[-1] == "torchane-dispatch":
            os.kill(os.getpid(), signal.SIGINT)

    run.device.wait_s, run.device.first = 0.2, interrupt
    run.device.then = lambda: ended.append(1)
    with pytest.raises(KeyboardInterrupt):
        run.step(0)
    assert begun == ["torchane-dispatch"] and len(ended) == 1
    run.device.wait_s, run.device.first = 0.0, lambda: None
    assert run.step(0) > 0


def test_a_dispatch_that_is_interrupted_while_its_thread_starts_is_called_off_or_waited_for(run, monkeypatch):
    real, ended, interrupted = threading.Thread.start, [], []

    def start(self):
        if self.name == "torchane-dispatch" and interrupted == [False]:
            interrupted[:] = [True]
            real(self)
            time.sleep(0.05)
            raise KeyboardInterrupt
        if self.name == "torchane-dispatch" and not interrupted:
            interrupted.append(False)
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    run.device.wait_s, run.device.then = 0.2, lambda: ended.append(1)
    for dispatches in (0, 1):  # it never began; it had begun
        with pytest.raises(KeyboardInterrupt):
            run.step(0)
        assert len(ended) == dispatches


def test_an_overflow_beside_a_dispatch_runs_the_backward_again_with_a_smaller_scale(run, monkeypatch):
    def overflowing(order) -> tuple[list[float], int, float]:
        monkeypatch.setattr(execute, "overlapped", order)
        torch._dynamo.reset()
        again = small_run(Waiting())
        for compiled in again.compiled:
            compiled.loss_scale.target = 24
        found = [again.step(0), again.step(1)]
        scale = again.compiled[0].loss_scale
        return found, scale.retries, scale.target

    ours, theirs = overflowing(overlapped), overflowing(one_by_one)
    assert ours == theirs and ours[1] > 0


def test_nothing_is_kept_of_a_run_that_is_over(run):
    run.step(0)
    gc.collect()
    gc.disable()
    try:
        run.step(1)
        assert not [one for one in gc.get_objects() if type(one) in (Run, Beside)]
    finally:
        gc.enable()


def test_where_no_thread_is_to_be_had_one_step_follows_the_other(run, monkeypatch):
    wanted = run.losses(2)

    def none(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    assert run.losses(2) == wanted


def test_the_timeline_of_a_real_run_has_host_work_below_a_dispatch():
    recorder, timer = Recorder(), Timer()
    run = small_run(Waiting(), observers=[recorder, timer])
    run.device.wait_s = 0.02
    recorder.clear()
    run.step(0)
    engine = [span for span in recorder.spans if span.track == "engine"]
    host = [span for span in recorder.spans if span.track == "host"]
    inside = [one for one in host for other in engine if other.start_s < one.start_s and one.start_s + one.time_s < other.start_s + other.time_s]
    plans = [plan_of(run, "forward"), plan_of(run, "backward")]
    assert len(inside) == sum(len(beside(plan)) for plan in plans)
    assert len(recorder.spans) == sum(len(plan.steps) for plan in plans)
    assert [span.start_s for span in recorder.spans] == sorted(span.start_s for span in recorder.spans)
    assert all(span.time_s >= 0.02 for span in engine)
