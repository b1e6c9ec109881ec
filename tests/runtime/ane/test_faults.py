"""Each documented fault at each kind of dispatch of a training run: the right loss, or an error that names the program.

Never a wrong loss, a hang or a crash. Errors are met with the device as it is; wrong numbers with every dispatch compared,
since between two looks nobody can know (docs/limits.md).
"""

import warnings
from dataclasses import replace

import pytest
import torch
from standin import COMPILER, CONNECTION, ERROR, EXCEPTION, NO, StandIn
from trainer import SmallRun

from torchane.errors import DeviceError, TorchaneWarning
from torchane.runtime.ane import AneDevice, framework
from torchane.runtime.ane.cache import CompileCache
from torchane.runtime.ane.trust import Seen
from torchane.runtime.loss_scale import LossScale
from torchane.runtime.twin import TwinDevice

#: Remedied by the device, so the loss keeps its bits.
TRANSIENT = {
    "refused without a reason": NO, "0x1d once": ERROR + 8, "timed out": ERROR + 3, "program gone": ERROR + 23, "data gone": ERROR + 24,
    "half an output": "partial", "daemon restarted": "restart",
}  # fmt: skip
#: Would fail again, so the step ends with an error.
FATAL = {
    "exception": EXCEPTION, "entitlement": ERROR + 1, "no signature": ERROR + 7, "sandbox": ERROR + 9, "invalid model": ERROR + 10,
    "virtual machine": ERROR + 22, "bad argument": ERROR + 26, "compiler": COMPILER,
}  # fmt: skip
WRONG = ("swapped", "stale", "zeros", "half", "one")
STEPS = 2


class Bench:
    """One compiled run on one machine, and what it gives when nothing goes wrong."""

    def __init__(self, machine: StandIn, folder):
        self.machine = machine
        found = framework.opened([str(machine.path)])
        self.device = AneDevice(found, cache=CompileCache(folder, found.build), patience=0.0)
        self.run = SmallRun(self.device)
        self.steps = STEPS
        self.clean = self.losses(1)
        before = machine.events["evaluate"]
        assert self.losses(1) == self.clean
        self.dispatches = machine.events["evaluate"] - before

    def losses(self, verify_every: int = 0) -> list[float]:
        self.device.close()  # so that every program is loaded and looked at anew
        self.device.verify_every = verify_every
        return self.run.losses(self.steps)

    def trust(self) -> None:
        """Ends every quarantine, and forgets what was wrong before."""
        for made in self.device.programs:
            made.quarantine, made.is_told, made.seen = "", False, Seen()

    def at(self, kind: str) -> int:
        """How many dispatches come before the first of the forward, of the backward, a middle one, the last."""
        forward = sum(1 for plan in self.run.compiled[0].plans.values() if "forward" in plan.name for _ in plan.dispatches)
        return {"first forward": 0, "first backward": forward, "middle": self.dispatches // 2, "last": self.dispatches - 1}[kind]


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


KINDS = (
    "first forward", "first backward", pytest.param("middle", marks=pytest.mark.long), pytest.param("last", marks=pytest.mark.long),
)  # fmt: skip


def test_the_engine_in_its_arithmetic_has_the_twins_bits(bench):
    assert bench.clean == SmallRun(TwinDevice(arithmetic="engine")).losses(STEPS)


def test_under_range_control_too(bench):
    """Each run starts with powers of two of its own, so both are the first of their compilation."""
    twin = SmallRun(TwinDevice(arithmetic="engine"), "on")
    engine = SmallRun(bench.device, "on")
    assert engine.losses(STEPS) == twin.losses(STEPS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_transient_fault_leaves_the_loss_as_it_is(bench, kind, fault):
    bench.machine.fail("evaluate", TRANSIENT[fault], after=bench.at(kind))
    assert bench.losses() == bench.clean


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FATAL)
def test_a_fault_that_stays_is_an_error_that_names_the_program(bench, kind, fault):
    bench.machine.fail("evaluate", FATAL[fault], after=bench.at(kind), times=1000)
    with pytest.raises(DeviceError, match="Neural Engine"):
        bench.losses()
    bench.machine.faults.clear()
    assert bench.losses() == bench.clean  # and the process can go on


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", WRONG)
def test_wrong_numbers_are_replaced(bench, kind, fault):
    bench.machine.fail("evaluate", fault, after=bench.at(kind), times=1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = bench.losses(verify_every=1)
    bench.trust()
    told = [str(one.message) for one in said if issubclass(one.category, TorchaneWarning)]
    assert found == bench.clean
    assert len(told) <= 1


@pytest.mark.parametrize("event", ["compile", "load"])
@pytest.mark.parametrize("fault", [NO, CONNECTION])
def test_a_transient_refusal_to_load_costs_nothing(bench, event, fault):
    bench.machine.fail(event, fault)
    assert bench.losses() == bench.clean


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
@pytest.mark.parametrize("fault", TRANSIENT)
def test_every_dispatch_of_twenty_steps_fails_the_first_time(bench, twenty, fault, evidence):
    struck = bench.machine.fail("evaluate", TRANSIENT[fault], times=1_000_000, every=2)
    assert bench.losses() == twenty
    evidence(f"{fault}: dispatches that met it", (struck.seen + 1) // 2)


@pytest.mark.long
@pytest.mark.parametrize("fault", WRONG)
def test_every_dispatch_of_twenty_steps_gives_wrong_numbers(bench, twenty, fault, monkeypatch, evidence):
    """Each is replaced by the twin's; quarantine is held off, so that the next dispatch is the engine's again."""
    found = []
    monkeypatch.setattr(bench.device, "quarantine", lambda made, why: found.append(made.name))
    struck = bench.machine.fail("evaluate", fault, times=1_000_000)
    assert bench.losses(verify_every=1) == twenty
    evidence(f"{fault}: dispatches, and those that were found", [struck.seen, len(found)])


@pytest.mark.long
@pytest.mark.parametrize("fault", FATAL)
def test_every_dispatch_of_twenty_steps_ends_in_a_named_error(bench, twenty, fault, evidence):
    """Each dispatch of each step fails for good; the step is then taken again, from the same weights."""
    bench.device.close()
    met = 0
    for step in range(MANY_STEPS):
        before = {name: value.clone() for name, value in bench.run.model.state_dict().items()} if step else bench.run.start
        dispatch = 0
        while True:
            bench.run.model.load_state_dict(before)
            struck = bench.machine.fail("evaluate", FATAL[fault], after=dispatch, times=1_000_000)
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
    evidence(f"{fault}: dispatches that met it", met)
