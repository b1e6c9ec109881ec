"""Each documented fault at each kind of dispatch of a training run: the right loss, or an error that names the program.

Never a wrong loss, a hang or a crash. Errors are met with the device as it is; wrong numbers with every dispatch compared,
since between two looks nobody can know (docs/limits.md).
"""

import warnings

import pytest
import torch
from standin import COMPILER, CONNECTION, ERROR, EXCEPTION, NO, StandIn
from trainer import SmallRun

from torchane.errors import DeviceError, TorchaneWarning
from torchane.runtime.ane import AneDevice, framework
from torchane.runtime.ane.cache import CompileCache
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
        """Ends every quarantine."""
        for made in self.device.programs:
            made.quarantine = ""

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


@pytest.mark.long
@pytest.mark.parametrize("fault", [*TRANSIENT, *FATAL, *WRONG])
def test_no_dispatch_of_twenty_steps_gives_a_wrong_loss(bench, fault, evidence):
    """Every single dispatch meets the fault, in a run of its own."""
    what = {**TRANSIENT, **FATAL}.get(fault, fault)
    bench.steps = 20
    try:
        clean = bench.losses()
        before = bench.machine.events["evaluate"]
        assert bench.losses() == clean
        count = bench.machine.events["evaluate"] - before
        named = 0
        for dispatch in range(count):
            struck = bench.machine.fail("evaluate", what, after=dispatch, times=1000 if fault in FATAL else 1)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", TorchaneWarning)
                    assert bench.losses(verify_every=int(fault in WRONG)) == clean, f"dispatch {dispatch}"
            except DeviceError as error:
                assert fault in FATAL and "Neural Engine" in str(error)
                named += 1
            assert struck.seen > dispatch
            bench.trust()
            bench.machine.faults.clear()
        assert named == (count if fault in FATAL else 0)
        evidence(f"{fault}: dispatches", count)
    finally:
        bench.steps = STEPS
