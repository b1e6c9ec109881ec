"""A process that is forked from one that uses the engine, as a DataLoader's workers are: it may not touch the parent's programs."""

import gc
import json
import os
import warnings

import pytest
from standin import StandIn
from test_device import Loaded, program

from torchane.errors import TorchaneError
from torchane.runtime.ane import AneDevice, framework
from torchane.runtime.ane.cache import CompileCache


def in_a_fork(act) -> object:
    """What `act` gives in a child, which ends as multiprocessing's children do."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other threads are there
        child = os.fork()
    if child == 0:
        try:
            os.write(write, json.dumps(act()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        text = said.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(text)


def refused(act) -> str:
    try:
        act()
    except TorchaneError as error:
        return str(error)
    return "it was done"


@pytest.fixture(params=framework.ROUTES)
def loaded(machine: StandIn, tmp_path, request):
    found = framework.opened([str(machine.path)])
    device = AneDevice(found, request.param, cache=CompileCache(tmp_path / "cache", found.build), patience=0.0)
    yield Loaded(device).run()
    device.close()


def test_a_dispatch_is_refused_there_with_the_programs_name_and_goes_on_here(machine: StandIn, loaded):
    for act in (loaded.run, lambda: loaded.device.allocate(loaded.program.inputs[0]), lambda: Loaded(loaded.device, program(3.0))):
        said = in_a_fork(lambda act=act: refused(act))
        assert "this process was forked from one that uses Apple's frameworks" in said
    said = in_a_fork(lambda: refused(loaded.run))
    assert said.startswith("layer3: the Neural Engine: ") and "spawn" in said
    assert loaded.run().is_right()


def test_nothing_is_sent_when_it_ends(machine: StandIn, loaded):
    def ends():
        before = machine.events.copy(), machine.live()
        loaded.device._finalizer()  # as at the end of an interpreter
        loaded.inputs.clear()
        loaded.outputs.clear()
        loaded.program.ready = None
        gc.collect()
        return before == (machine.events, machine.live())

    assert in_a_fork(ends) is True
    assert machine.loaded == 1 and loaded.run().is_right()


def test_a_framework_is_not_opened_there_again(machine: StandIn, loaded):
    assert "forked" in in_a_fork(lambda: refused(lambda: framework.opened([str(machine.path)])))
