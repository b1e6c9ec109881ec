"""Observers of a plan: called around every step, and never in the way of one."""

import gc
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "ane"))

from trainer import SmallRun

from torchane.errors import DeviceError
from torchane.plan import Dispatch
from torchane.runtime.ane.verify import Verifier
from torchane.runtime.ane.watchdog import Watchdog
from torchane.runtime.observers import Observer, Timer
from torchane.runtime.run import Run
from torchane.runtime.twin import TwinDevice


class Told(Observer):
    def __init__(self):
        self.plans, self.calls, self.programs = [], [], []

    def compiled(self, plan, programs):
        self.plans.append(plan)
        self.programs.append([program.name for program in programs])

    def before(self, moment):
        self.calls.append(("before", moment.plan.name, moment.index, len(moment.runs)))

    def after(self, moment):
        self.calls.append(("after", moment.plan.name, moment.index, len(moment.runs)))


class Faulty(TwinDevice):
    """Does something to the outputs of every run."""

    def then(self, outputs):
        """Nothing at first."""

    def run(self, program, inputs, outputs):
        super().run(program, inputs, outputs)
        self.then(outputs)


TOLD = Told()


@pytest.fixture(scope="module")
def run() -> SmallRun:
    return SmallRun(Faulty(), observers=[TOLD])


@contextmanager
def observed(run: SmallRun, *observers: Observer) -> Iterator[None]:
    """These and no others watch a run that was compiled before."""
    before = [compiled.observers[:] for compiled in run.compiled]
    for compiled in run.compiled:
        compiled.observers[:] = observers
    yield
    for compiled, those in zip(run.compiled, before, strict=True):
        compiled.observers[:] = those


def plans_of(run: SmallRun) -> list:
    return [plan for compiled in run.compiled for plan in compiled.plans.values()]


def test_it_is_told_of_every_plan_and_its_programs(run) -> None:
    assert TOLD.plans == plans_of(run)
    assert TOLD.programs == [[program.name for program in plan.programs] for plan in TOLD.plans]


def test_it_is_called_before_and_after_each_step_in_order(run) -> None:
    with observed(run, told := Told()):
        run.losses(1)
    wanted = [(when, plan.name, index) for plan in plans_of(run) for index in range(len(plan.steps)) for when in ("before", "after")]
    assert [call[:3] for call in told.calls] == wanted


def test_a_dispatch_shows_its_run_and_no_other_step_has_one(run) -> None:
    with observed(run, told := Told()):
        run.losses(1)
    plans = {plan.name: plan for plan in plans_of(run)}
    assert told.calls
    for when, name, index, runs in told.calls:
        assert runs == (when == "after" and isinstance(plans[name].steps[index], Dispatch))


def test_several_nest(run) -> None:
    order = []

    class Named(Observer):
        def __init__(self, name):
            self.name = name

        def before(self, moment):
            order.append(f"{self.name} before")

        def after(self, moment):
            order.append(f"{self.name} after")

    with observed(run, Named("one"), Named("two")):
        run.losses(1)
    assert order[:4] == ["one before", "two before", "two after", "one after"]


def test_it_changes_no_number_and_is_asked_no_more_once_it_is_gone(run) -> None:
    with observed(run):
        alone = run.losses(2)
    with observed(run, told := Told()):
        assert run.losses(2) == alone
    count = len(told.calls)
    run.losses(1)
    assert len(told.calls) == count > 0


def test_a_run_that_was_watched_is_gone_when_it_ends(run) -> None:
    """Else gradients that it still holds are copied by autograd, and their memory is not there for the next step."""
    with observed(run, Told()):
        gc.collect()
        gc.disable()
        try:
            run.losses(1)
            assert not [one for one in gc.get_objects() if type(one) is Run]
        finally:
            gc.enable()


def test_a_timer_adds_up_what_the_device_did(run) -> None:
    with observed(run, timer := Timer()):
        run.losses(1)
    assert timer.macs == sum(plan.macs for plan in plans_of(run))
    assert timer.runs == sum(len(plan.dispatches) for plan in plans_of(run))
    assert 0 < timer.device_s <= timer.steps_s["Dispatch"]


def test_a_step_that_fails_is_still_followed_and_says_so(run, monkeypatch) -> None:
    errors = []

    class Failures(Observer):
        def after(self, moment):
            if moment.error is not None:
                errors.append(f"{type(moment.step).__name__}: {moment.error}")

    def broken(outputs):
        raise DeviceError("broken")

    monkeypatch.setattr(run.device, "then", broken)
    with observed(run, Failures()), pytest.raises(DeviceError, match="broken"):
        run.losses(1)
    assert errors == ["Dispatch: broken"]


def test_a_verification_can_be_an_observer(run, monkeypatch) -> None:
    class Verifying(Observer):
        def __init__(self):
            self.verifier, self.differences, self.compared = Verifier(), 0, 0

        def after(self, moment):
            for one in moment.runs:
                given, got = ([b.array for b in side] for side in (one.inputs, one.outputs))
                self.compared += 1
                self.differences += bool(self.verifier.differences(one.program, given, got, self.verifier.expected(one.program, given)))

    with observed(run, right := Verifying()):
        run.losses(1)
    assert right.compared == sum(len(plan.dispatches) for plan in plans_of(run))
    assert right.differences == 0
    monkeypatch.setattr(run.device, "then", lambda outputs: np.copyto(outputs[0].array, np.float16(3)))
    with observed(run, wrong := Verifying()):
        run.losses(1)
    assert wrong.differences == wrong.compared > 0


def test_a_watchdog_can_be_an_observer(run, monkeypatch) -> None:
    expired = []
    dog = Watchdog(None, expired.append)

    class Watching(Observer):
        def before(self, moment):
            dog.begin(f"{moment.plan.name}, step {moment.index}", "key", 0.02)

        def after(self, moment):
            dog.end()

    monkeypatch.setattr(run.device, "then", lambda outputs: time.sleep(0.2 if not expired else 0))
    with observed(run, Watching()):
        run.losses(1)
    dog.close()
    assert re.search(r"forward, step \d+: the Neural Engine has not answered", expired[0])


@pytest.mark.filterwarnings("ignore::torchane.errors.TorchaneWarning")
def test_runs_that_range_control_repeats_belong_to_one_step() -> None:
    counts = []

    class Runs(Observer):
        def after(self, moment):
            counts.append(len(moment.runs))

    run = SmallRun(TwinDevice(arithmetic="engine"), "on", [Runs()])
    reruns = sum(compiled.ranges.reruns for compiled in run.compiled)
    assert reruns
    assert sum(counts) == sum(len(plan.dispatches) for plan in plans_of(run)) + reruns
