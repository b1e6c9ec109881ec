"""Each documented fault at each kind of dispatch of a training run: the right loss, or an error that names the program.

Never a wrong loss, a hang or a crash. Errors are met with the device as it is; wrong numbers with every dispatch compared,
since between two looks nobody can know (docs/limits.md).
"""

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faults import BY_NAME, ERRORS, FAULTS, REPLACED, SAME
from standin import StandIn
from trainer import SmallRun

from torchane.errors import DeviceError, TorchaneWarning
from torchane.runtime.ane import AneDevice, framework
from torchane.runtime.ane.cache import CompileCache
from torchane.runtime.ane.trust import Seen
from torchane.runtime.ane.watchdog import EXIT_CODE
from torchane.runtime.loss_scale import LossScale
from torchane.runtime.twin import TwinDevice

#: At a dispatch, and at a load: programs are then so few at a time that nearly every dispatch loads one.
DISPATCHED = {becomes: [fault.name for fault in FAULTS if fault.event in ("evaluate", "request") and fault.becomes == becomes] for becomes in (SAME, ERRORS, REPLACED)}
LOADED = {becomes: [fault.name for fault in FAULTS if fault.event in ("compile", "load") and fault.becomes == becomes] for becomes in (SAME, ERRORS)}
STEPS = 2
HERE = Path(__file__).resolve()


class Bench:
    """One compiled run on one machine, and what it gives when nothing goes wrong."""

    def __init__(self, machine: StandIn, folder):
        self.machine = machine
        found = framework.opened([str(machine.path)])
        self.device = AneDevice(found, cache=CompileCache(folder, found.build), patience=0.0)
        self.run = SmallRun(self.device)
        self.steps = STEPS
        self.clean = self.losses(1)
        before = machine.events.copy()
        assert self.losses(1) == self.clean
        self.dispatches, self.requests = (machine.events[event] - before[event] for event in ("evaluate", "request"))

    def losses(self, verify_every: int = 0) -> list[float]:
        self.device.close()  # so that every program is loaded and looked at anew
        self.device.verify_every = verify_every
        return self.run.losses(self.steps)

    def trust(self) -> None:
        """Ends every quarantine, and forgets what was wrong before."""
        for made in self.device.programs:
            made.quarantine, made.is_told, made.seen = "", False, Seen()

    @property
    def forward(self) -> int:
        """The dispatches of a forward."""
        return sum(1 for plan in self.run.compiled[0].plans.values() if "forward" in plan.name for _ in plan.dispatches)


@pytest.fixture(scope="module")
def bench(standin_library, tmp_path_factory):
    torch._dynamo.reset()
    machine = StandIn(standin_library, tmp_path_factory.mktemp("daemon"), "engine")
    made = Bench(machine, tmp_path_factory.mktemp("cache"))
    yield made
    made.device.close()
    assert not machine.errors


@pytest.fixture(autouse=True)
def without_faults(bench):
    yield
    bench.machine.faults.clear()


#: One kind in the quick tier, all in the long one.
KINDS = ("first backward", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("first forward", "middle", "last")))


@pytest.fixture
def strike(bench, evidence):
    """Lets a fault happen from a dispatch of the run on; at the end it must have happened."""
    chosen = []

    def at(fault: str, kind: str, count: int):
        told = BY_NAME[fault]
        first = {"first forward": 0, "first backward": bench.forward, "middle": count // 2, "last": count - 1}[kind]
        chosen.append((bench.machine.fail(told.event, told.what, after=first, times=1000 if told.is_met_again else 1), first))
        evidence("met", kind)

    yield at
    for struck, first in chosen:
        assert struck.seen > first, "it was never met"


@pytest.fixture
def loads_often(bench):
    """One program at a time; how many loads a run then has."""
    bench.device.most_loaded = 1
    before = bench.machine.events["load"]
    assert bench.losses() == bench.clean
    yield bench.machine.events["load"] - before
    bench.device.most_loaded = 100


@pytest.fixture(scope="module")
def controlled(bench):
    """The same run under range control."""
    return SmallRun(bench.device, "on")


def test_the_engine_in_its_arithmetic_has_the_twins_bits(bench):
    assert bench.clean == SmallRun(TwinDevice(arithmetic="engine")).losses(STEPS)


@pytest.mark.long
def test_under_range_control_too(bench):
    """Each run starts with powers of two of its own, so both are the first of their compilation."""
    twin = SmallRun(TwinDevice(arithmetic="engine"), "on")
    engine = SmallRun(bench.device, "on")
    assert engine.losses(STEPS) == twin.losses(STEPS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", DISPATCHED[SAME])
def test_a_transient_fault_leaves_the_loss_as_it_is(bench, strike, kind, fault):
    strike(fault, kind, bench.dispatches)
    assert bench.losses() == bench.clean


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", DISPATCHED[ERRORS])
def test_a_fault_that_stays_is_an_error_that_names_the_program(bench, strike, kind, fault):
    strike(fault, kind, bench.requests if BY_NAME[fault].event == "request" else bench.dispatches)
    with pytest.raises(DeviceError, match="Neural Engine"):
        bench.losses()
    bench.machine.faults.clear()
    assert bench.losses() == bench.clean  # and the process can go on


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", DISPATCHED[REPLACED])
def test_wrong_numbers_are_replaced(bench, strike, kind, fault):
    strike(fault, kind, bench.dispatches)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = bench.losses(verify_every=1)
    bench.trust()
    told = [str(one.message) for one in said if issubclass(one.category, TorchaneWarning)]
    assert found == bench.clean
    assert len(told) <= 1


#: Numbers that show by themselves that something is wrong: found at any dispatch, not only at those that are compared with the twin.
SHOWS = ("not a number", "an infinity", "zeros")


@pytest.mark.parametrize("ranges", ["off", "on"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", SHOWS)
def test_what_is_not_finite_or_zero_is_found_where_no_dispatch_is_due(bench, controlled, fault, kind, ranges):
    """In the third step, when all have been compared that are due: neither an overflow nor the model is taken for the cause."""
    run = bench.run if ranges == "off" else controlled
    bench.device.close()
    bench.device.verify_every = 0
    before = bench.machine.events["evaluate"]
    clean = run.losses(3)
    third = (bench.machine.events["evaluate"] - before) // 3
    bench.device.close()
    run.losses(2)
    at = {"first forward": 0, "first backward": bench.forward, "middle": third // 2, "last": third - 1}[kind]
    struck = bench.machine.fail("evaluate", BY_NAME[fault].what, after=at)
    scale = replace(run.compiled[0].loss_scale)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = run.step(2)
    told = [str(one.message) for one in said if issubclass(one.category, TorchaneWarning)]
    bench.trust()
    assert struck.seen > at
    assert found == clean[2]
    assert run.compiled[0].loss_scale.retries == scale.retries
    assert len(told) == 1 and "the Neural Engine's numbers were wrong" in told[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", LOADED[SAME])
def test_a_transient_refusal_to_load_costs_nothing(bench, strike, loads_often, kind, fault):
    if BY_NAME[fault].event == "compile":  # all is compiled by now
        bench.machine.forget_compiled()
        kind = "first forward"
    strike(fault, kind, loads_often)
    assert bench.losses() == bench.clean


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", LOADED[ERRORS])
def test_a_program_that_cannot_be_loaded_is_an_error_that_names_it(bench, strike, loads_often, kind, fault):
    if BY_NAME[fault].event == "compile":
        bench.machine.forget_compiled()
        kind = "first forward"
    strike(fault, kind, loads_often)
    with pytest.raises(DeviceError, match="Neural Engine"):
        bench.losses()
    bench.machine.faults.clear()
    assert bench.losses() == bench.clean


#: A run of two steps whose engine hangs at dispatch number argv[3].
HANGING = f"""
import sys
sys.path[:0] = [{str(HERE.parents[2] / "apple")!r}, {str(HERE.parent)!r}]
from pathlib import Path
from standin import HANGS, StandIn
from torchane.runtime.ane import AneDevice, framework
from torchane.runtime.ane.cache import CompileCache
from trainer import SmallRun
library, folder, at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
machine = StandIn(library, folder / "daemon", "engine")
found = framework.opened([str(library)])
device = AneDevice(found, cache=CompileCache(folder / "cache", found.build), dispatch_s=2.0, verifies=False)
run = SmallRun(device)
machine.fail("evaluate", HANGS, after=at)
run.losses(2)
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["first forward", "first backward", "middle", "last"])
def test_a_call_that_never_returns_ends_the_process_with_a_named_error(bench, standin_library, tmp_path, kind, evidence):
    """What follows is `torchane train`'s: a fresh process, from the last checkpoint (tests/apple/test_training.py)."""
    at = {"first forward": 0, "first backward": bench.forward, "middle": bench.dispatches // 2, "last": bench.dispatches - 1}[kind]
    done = subprocess.run([sys.executable, "-c", HANGING, str(standin_library), str(tmp_path), str(at)], capture_output=True, text=True)
    assert done.returncode == EXIT_CODE, done.stderr
    assert "the Neural Engine has not answered" in done.stderr
    evidence("met", kind)


def test_few_programs_at_a_time_give_the_same_bits(bench):
    bench.machine.most_loaded = 2
    try:
        assert bench.losses() == bench.clean
    finally:
        bench.machine.most_loaded = 127


MANY_STEPS = 20


@pytest.fixture
def twenty(bench):
    """What 20 steps give when nothing goes wrong."""
    bench.steps = MANY_STEPS
    yield bench.losses()
    bench.steps = STEPS


@pytest.mark.long
@pytest.mark.parametrize("fault", DISPATCHED[SAME])
def test_every_dispatch_of_twenty_steps_fails_the_first_time(bench, twenty, fault, evidence):
    struck = bench.machine.fail("evaluate", BY_NAME[fault].what, times=1_000_000, every=2)
    assert bench.losses() == twenty
    evidence("every dispatch", (struck.seen + 1) // 2)


@pytest.mark.long
@pytest.mark.parametrize("fault", DISPATCHED[REPLACED])
def test_every_dispatch_of_twenty_steps_gives_wrong_numbers(bench, twenty, fault, monkeypatch, evidence):
    """Each is replaced by the twin's; quarantine is held off, so that the next dispatch is the engine's again."""
    found = []
    monkeypatch.setattr(bench.device, "quarantine", lambda made, why: found.append(made.name))
    struck = bench.machine.fail("evaluate", BY_NAME[fault].what, times=1_000_000)
    assert bench.losses(verify_every=1) == twenty
    assert struck.seen > 0
    evidence("every dispatch", len(found))


@pytest.mark.long
@pytest.mark.parametrize("fault", [name for name in DISPATCHED[ERRORS] if BY_NAME[name].event == "evaluate"])
def test_every_dispatch_of_twenty_steps_ends_in_a_named_error(bench, twenty, fault, evidence):
    """Each dispatch of each step fails for good; the step is then taken again, from the same weights."""
    bench.device.close()
    met = 0
    for step in range(MANY_STEPS):
        before = {name: value.clone() for name, value in bench.run.model.state_dict().items()} if step else bench.run.start
        dispatch = 0
        while True:
            bench.run.model.load_state_dict(before)
            struck = bench.machine.fail("evaluate", BY_NAME[fault].what, after=dispatch, times=1_000_000)
            scale = replace(bench.run.compiled[0].loss_scale) if step else LossScale()
            bench.run.compiled[0].loss_scale = replace(scale)
            try:
                loss = bench.run.step(step)
            except DeviceError as error:
                assert "Neural Engine" in str(error)
                met += 1
                dispatch += 1
                bench.run.compiled[0].loss_scale = scale
                continue
            finally:
                bench.machine.faults.clear()
            assert struck.seen <= dispatch
            assert loss == twenty[step]
            break
    evidence("every dispatch", met)
