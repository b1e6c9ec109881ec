"""The `ane` device on the stand-in: residency, remedies, verification. What every device does is in tests/runtime/devices."""

import gc

import numpy as np
import pytest
from standin import COMPILER, CONNECTION, ERROR, EXCEPTION, NIL, NO, StandIn, noisy

from torchane.errors import DeviceError, TorchaneWarning
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.name_constants import name_constants
from torchane.mil.save import emit
from torchane.mil.types import FP16, TensorType
from torchane.runtime.ane import AneDevice, framework
from torchane.runtime.ane.cache import CompileCache


def program(factor: float = 2.0):
    """y = factor x + w, and w - x; names whose order as symbols is not that of the text."""
    b = Builder()
    x, w = b.input("z_x", (1, 8, 1, 32)), b.input("a_w", (1, 8, 1, 32))
    return b.program(b.sub(x=w, y=x, name="y2"), b.add(x=b.mul(x=x, y=factor), y=w, name="y"))


class Loaded:
    def __init__(self, device, made=None, name="layer3"):
        self.device, self.made = device, made or program()
        text, blobs = emit(name_constants(self.made))
        self.program = device.load(text, blobs, name=name)
        self.inputs = [device.allocate(port) for port in self.program.inputs]
        self.outputs = [device.allocate(port) for port in self.program.outputs]
        rng = np.random.default_rng(0)
        for buffer in self.inputs:
            buffer.array[...] = rng.standard_normal(buffer.array.shape)

    def run(self):
        self.device.run(self.program, self.inputs, self.outputs)
        return self

    def is_right(self):
        want = evaluate(self.made, {var.name: b.array for var, b in zip(self.made.inputs, self.inputs)})
        return all(
            np.allclose(b.array, want[var.name], rtol=2.0**-8, atol=2.0**-8) for b, var in zip(self.outputs, self.made.outputs)
        )


def test_ports_are_bound_by_their_symbols(engine):
    assert Loaded(engine).run().is_right()


def test_ports_are_bound_by_name_where_the_program_does_not_list_them(machine: StandIn, engine):
    machine.answers_symbols = False
    assert Loaded(engine).run().is_right()


def test_programs_used_longest_ago_make_room(machine: StandIn, engine):
    engine.most_loaded = 3
    every = [Loaded(engine, program(factor)) for factor in (2.0, 3.0, 4.0, 5.0)]
    assert machine.loaded == 3
    for _ in range(2):
        for one in every:
            assert one.run().is_right()
    assert machine.loaded == 3
    assert engine.counts["compiles"] == 4


def test_a_full_engine_makes_the_device_unload(machine: StandIn, engine):
    machine.most_loaded = 2
    every = [Loaded(engine, program(factor)) for factor in (2.0, 3.0, 4.0)]
    for one in every:
        assert one.run().is_right()
    assert engine.counts["retries"]


def test_what_was_compiled_before_is_loaded_without_compiling(machine: StandIn, engine, tmp_path):
    Loaded(engine).run()
    engine.close()
    again = AneDevice(engine.framework, cache=CompileCache(tmp_path / "cache", "25A000"), patience=0.0)
    assert Loaded(again).run().is_right()
    assert machine.events["compile"] == 1
    again.close()


def test_close_unloads_everything(machine: StandIn, engine):
    every = [Loaded(engine, program(factor)) for factor in (2.0, 3.0)]
    engine.close()
    assert machine.loaded == 0
    assert every[0].run().is_right()


def test_a_program_that_nobody_holds_is_unloaded(machine: StandIn, engine):
    Loaded(engine).run()
    assert machine.loaded == 0


@pytest.mark.parametrize(
    ("event", "what"),
    [
        ("compile", CONNECTION), ("compile", NO), ("load", NO), ("load", ERROR + 10), ("load", ERROR + 16), ("load", ERROR + 23),
        ("evaluate", ERROR + 8), ("evaluate", ERROR + 3), ("evaluate", ERROR + 23), ("evaluate", NO), ("evaluate", "partial"),
    ],
)  # fmt: skip
def test_what_reports_call_transient_is_tried_once_more(machine: StandIn, engine, event, what):
    machine.fail(event, what)
    assert Loaded(engine).run().is_right()
    assert engine.counts["retries"] >= 1


@pytest.mark.parametrize("event", ["descriptor", "model", "compile", "load", "request", "evaluate"])
@pytest.mark.parametrize("what", [EXCEPTION, NIL, NO, ERROR + 1, ERROR + 8, ERROR + 9, ERROR + 10, ERROR + 22, ERROR + 26, COMPILER, CONNECTION])
def test_what_stays_is_an_error_with_the_programs_name(machine: StandIn, engine, event, what):
    machine.fail(event, what, times=1000)
    with pytest.raises(DeviceError, match="layer3.*Neural Engine") as found:
        Loaded(engine).run()
    assert len(str(found.value)) > 80


def test_a_restarted_daemon_costs_a_load(machine: StandIn, engine):
    loaded = Loaded(engine).run()
    machine.restart_daemon()
    assert loaded.run().is_right()
    assert machine.events["compile"] == 1


def test_after_an_update_of_the_system_everything_is_compiled_anew(machine: StandIn, engine, tmp_path):
    Loaded(engine).run()
    engine.close()
    machine.build = "25B999"
    machine.forget_compiled()
    found = framework.opened([str(machine.path)])
    again = AneDevice(found, cache=CompileCache(tmp_path / "cache", found.build), patience=0.0)
    assert Loaded(again).run().is_right()
    assert machine.events["compile"] == 2
    again.close()


def test_an_overflow_is_infinite_outputs(machine: StandIn, engine):
    machine.fail("evaluate", ERROR + 5, after=1, times=1)
    loaded = Loaded(engine).run().run()
    assert all(np.isinf(buffer.array).all() for buffer in loaded.outputs)


@pytest.mark.parametrize("damage", ["swapped", "zeros", "half", "one"])
def test_wrong_numbers_at_the_first_dispatch_are_the_twins_instead(machine: StandIn, engine, damage):
    machine.fail("evaluate", damage, times=1000)
    loaded = Loaded(engine)
    with pytest.warns(TorchaneWarning, match="layer3: the twin computes this program from now on"):
        loaded.run()
    assert loaded.is_right()
    assert loaded.run().is_right()  # and is not said again
    assert machine.loaded == 0


def test_wrong_numbers_later_are_found_at_the_next_look(machine: StandIn, engine):
    engine.verify_every = 5
    machine.fail("evaluate", "stale", after=2, times=1000)
    loaded = Loaded(engine).run()
    loaded.inputs[0].array[...] *= 3
    loaded.run().run().run()
    with pytest.warns(TorchaneWarning, match="layer3"):
        loaded.run()
    assert loaded.is_right()


def test_an_engine_that_rounds_otherwise_is_trusted(machine: StandIn, engine):
    machine.arithmetic = noisy(4)
    engine.verify_every = 1
    loaded = Loaded(engine)
    for _ in range(20):
        loaded.run()
    assert engine.counts["verified"] == 20 and not engine.counts["quarantined"]


def test_a_poisoned_process_is_an_error_and_no_wrong_number(machine: StandIn, engine):
    loaded = Loaded(engine).run()
    machine._poisoned = True
    with pytest.raises(DeviceError, match=r"layer3.*status=0x1d.*Start again"):
        loaded.run()


def test_equal_surfaces_are_made_where_the_system_wants_them(machine: StandIn, engine):
    b = Builder()
    x, w = b.input("a0_x", (1, 1, 64, 1024)), b.input("a1_w", (1, 1, 1024, 32))
    made = b.program(b.matmul(x=x, y=w, name="z0_y"))
    machine.wants_equal_surfaces = True
    loaded = Loaded(engine, made)
    with pytest.raises(DeviceError, match="0x1d"):
        loaded.run()
    engine.equal_surfaces = True
    assert np.isfinite(loaded.run().outputs[0].array).all()
    assert not engine.counts["quarantined"]


def test_a_port_that_engines_read_as_zeros_is_refused(engine):
    b = Builder()
    with pytest.raises(DeviceError, match="layer3: the port a0_x .*multiple of 32"):
        Loaded(engine, b.program(b.exp(x=b.input("a0_x", (1, 8, 1, 33)), name="z0_y")))


def test_surfaces_that_are_let_go_are_freed(machine: StandIn, engine):
    gc.collect()
    loaded = Loaded(engine).run()
    before = machine.live()["surfaces"]
    for _ in range(5):
        loaded.outputs = [engine.allocate(port) for port in loaded.program.outputs]
        loaded.run()
    assert machine.live()["surfaces"] == before


def test_an_array_outlives_its_buffer(engine):
    array = engine.allocate(TensorType(FP16, (1, 8, 1, 32))).array
    array[...] = 5
    assert (array == 5).all()


def test_ops_are_counted(engine):
    loaded = Loaded(engine).run().run()
    assert engine.executed == {"sub": 2, "mul": 2, "add": 2}
    assert loaded.program.stats.ops == 3


def test_a_program_runs_again_with_surfaces_that_it_knows_and_with_no_others(engine):
    loaded = Loaded(engine).run()
    ready, others = loaded.program.ready, [engine.allocate(port) for port in loaded.program.inputs]
    assert ready.run_again(loaded.inputs, loaded.outputs)
    assert not ready.run_again(others, loaded.outputs)
    engine.run(loaded.program, others, loaded.outputs)
    assert ready.run_again(others, loaded.outputs)
    engine.unload(loaded.program)
    assert not ready.run_again(loaded.inputs, loaded.outputs)


def test_a_surface_where_a_known_one_lay_is_not_known(engine):
    """Its memory may be given out again, at the same address."""
    loaded = Loaded(engine).run()
    ready, inputs = loaded.program.ready, loaded.inputs
    for _ in range(20):
        loaded.inputs = inputs = [engine.allocate(port) for port in loaded.program.inputs]
        assert not ready.run_again(inputs, loaded.outputs)
        loaded.run()


def test_a_buffer_without_a_surface_is_refused_by_name(engine):
    from torchane.runtime.twin import TwinDevice

    loaded = Loaded(engine).run()
    loaded.inputs[0].array[...] += 1
    loaded.run().run()
    with pytest.raises(DeviceError, match="layer3: input 1 is no surface of this device"):
        engine.run(loaded.program, [loaded.inputs[0], TwinDevice().allocate(loaded.program.inputs[1])], loaded.outputs)


def test_an_error_between_load_and_first_run_is_told_and_unloads(machine: StandIn, engine, monkeypatch):
    def refuse(*_):
        raise DeviceError("the ports have other names here")

    monkeypatch.setattr("torchane.runtime.ane.device.places", refuse)
    with pytest.raises(DeviceError, match="other names"):
        Loaded(engine)
    assert machine.loaded == 0
