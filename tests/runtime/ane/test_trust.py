"""Which dispatches are looked at, and the second chances of a program whose numbers were wrong."""

import warnings

import numpy as np
import pytest
from standin import StandIn
from test_device import Loaded

from torchane.errors import TorchaneWarning
from torchane.mil.build import Builder


def product():
    b = Builder()
    return b.program(b.matmul(x=b.input("a0_x", (1, 1, 32, 64)), y=b.input("a1_w", (1, 1, 64, 32)), name="z0_y"))


def attention():
    b = Builder()
    return b.program(b.mul(x=b.softmax(x=b.input("a0_x", (1, 8, 1, 64)), axis=-1), y=2.0, name="z0_y"))


def two_weights():
    b = Builder()
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((32, 32, 1, 1)).astype(np.float16) / 8 for _ in range(2)]
    x = b.input("a0_x", (1, 32, 1, 32))
    return b.program(b.conv(x=b.conv(x=x, weight=weights[0]), weight=weights[1], name="z0_y"))


def test_first_other_surfaces_and_new_contents_are_looked_at_once_each(engine):
    """Layers that share a program have surfaces of their own; a step brings new contents."""
    loaded = Loaded(engine, product())
    layers = [loaded.inputs, [engine.allocate(port) for port in loaded.program.inputs], [engine.allocate(port) for port in loaded.program.inputs]]
    looked_at = []
    for _ in range(3):
        for inputs in layers:
            loaded.inputs = inputs
            inputs[1].array[...] = np.random.default_rng(len(looked_at)).standard_normal(inputs[1].type.shape)
            before = engine.counts["verified"]
            loaded.run()
            looked_at.append(engine.counts["verified"] - before)
    assert looked_at == [1, 1, 0, 1, 0, 0, 0, 0, 0]


def test_an_engine_that_keeps_its_first_weights_is_found_at_the_second_step(machine: StandIn, engine):
    engine.verify_every = 0
    machine.fail("evaluate", "stale", times=1000)
    loaded = Loaded(engine, product()).run()
    loaded.inputs[1].array[...] += 1
    with pytest.warns(TorchaneWarning, match=r"layer3: .* a1_w \(version \d, now \d\) changed.*Loaded again, they are right"):
        loaded.run()
    assert loaded.is_right()
    assert not loaded.program.quarantine


def test_contents_that_were_only_written_again_are_not_blamed(machine: StandIn, engine):
    loaded = Loaded(engine, product()).run()
    loaded.inputs[0].array[...] += 1
    loaded.inputs[1].array[...] += 0
    assert [text.split()[0] for text in loaded.program.seen.changed(("a0_x", "a1_w"), loaded.inputs)] == ["a0_x"]


def test_numbers_that_were_wrong_once_are_right_after_another_load(machine: StandIn, engine):
    machine.fail("evaluate", "half")
    loaded = Loaded(engine)
    with pytest.warns(TorchaneWarning, match="Loaded again, they are right"):
        loaded.run()
    assert loaded.is_right() and not loaded.program.quarantine
    assert engine.counts["reloads"] == 1 and machine.loaded == 1


def test_an_op_that_the_engine_computes_wrong_is_written_otherwise(machine: StandIn, engine):
    machine.wrong_op = "softmax"
    loaded = Loaded(engine, attention())
    with pytest.warns(TorchaneWarning, match="With its ops written otherwise they are right"):
        loaded.run()
    assert loaded.is_right() and not loaded.program.quarantine
    assert "softmax(" not in loaded.program.source.text and "exp(" in loaded.program.source.text
    before = machine.events["evaluate"]
    assert loaded.run().is_right() and machine.events["evaluate"] == before + 1  # on the engine


def test_packed_weights_that_are_read_wrong_get_files_of_their_own(machine: StandIn, engine):
    machine.reads_first_block_only = True
    loaded = Loaded(engine, two_weights())
    with pytest.warns(TorchaneWarning, match="With its weights in files of their own they are right"):
        loaded.run()
    assert loaded.is_right() and len(loaded.program.source.weights) == 2


def test_what_is_wrong_however_it_is_written_is_the_twins(machine: StandIn, engine):
    machine.fail("evaluate", "half", times=1000)
    loaded = Loaded(engine, attention())
    with pytest.warns(TorchaneWarning, match="the twin computes this program from now on"):
        loaded.run()
    assert loaded.is_right()
    assert "softmax(" in loaded.program.source.text  # as it was asked for
    assert engine.counts["respelled"] == 1 and machine.loaded == 0


def test_a_spelling_that_is_refused_is_passed_over(machine: StandIn, engine):
    machine.fail("compile", 2000, after=1, times=1000)
    machine.wrong_op = "softmax"
    loaded = Loaded(engine, attention())
    with pytest.warns(TorchaneWarning, match="the twin computes this program from now on"):
        loaded.run()
    assert loaded.is_right()


def test_an_engine_that_stays_stale_is_left_after_a_few_loads(machine: StandIn, engine):
    """Each load cures it until the next change: after three of them it is not trusted any more."""
    engine.verify_every = 1
    machine.fail("evaluate", "stale", times=1000)
    loaded = Loaded(engine, product()).run()
    with pytest.warns(TorchaneWarning) as said:
        for _ in range(6):
            loaded.inputs[1].array[...] += 1
            assert loaded.run().is_right()
    assert engine.counts["reloads"] == 3
    assert loaded.program.quarantine
    assert len(said) == 2  # that it was loaded again, and that the twin has it


def run_often(loaded, times=3):
    """Until no dispatch is due."""
    for _ in range(times):
        loaded.inputs[0].array[...] += 0.25
        loaded.run()
    return loaded


@pytest.mark.parametrize("damage", ["nan", "infinite", "zeros"])
def test_numbers_that_no_program_gives_are_the_engines_and_replaced(machine: StandIn, engine, damage):
    loaded = run_often(Loaded(engine, product()))
    machine.fail("evaluate", damage)
    loaded.run()
    assert not loaded.is_right()  # this dispatch was not due
    with pytest.warns(TorchaneWarning, match=r"layer3: the Neural Engine's numbers were wrong: output 0: .*Loaded again, they are right"):
        assert engine.confirm(loaded.program, loaded.inputs, loaded.outputs)
    assert loaded.is_right()


def test_an_overflow_that_the_program_gives_is_no_fault(engine):
    loaded = run_often(Loaded(engine, product()))
    loaded.inputs[0].array[...] = loaded.inputs[1].array[...] = 200.0
    with np.errstate(over="ignore"):
        loaded.run()
    assert np.isinf(loaded.outputs[0].look()).all()
    verified = engine.counts["verified"]
    assert not engine.confirm(loaded.program, loaded.inputs, loaded.outputs)
    assert engine.counts["verified"] == verified + 1


def test_what_comes_of_infinities_that_were_given_is_not_looked_at(engine):
    loaded = run_often(Loaded(engine, product()))
    loaded.inputs[0].array[...] = np.inf
    with np.errstate(invalid="ignore"):
        loaded.run()
    verified = engine.counts["verified"]
    assert not engine.confirm(loaded.program, loaded.inputs, loaded.outputs)
    assert engine.counts["verified"] == verified


def test_zeros_that_the_program_gives_are_compared_less_and_less_often(engine):
    """The gradient of a LoRA's A is 0 as long as its B is."""
    loaded = run_often(Loaded(engine, product()))
    loaded.inputs[0].array[...] = 0
    compared = []
    for _ in range(9):
        before = engine.counts["verified"]
        loaded.run()
        assert not engine.confirm(loaded.program, loaded.inputs, loaded.outputs)
        compared.append(engine.counts["verified"] - before)
    assert compared == [1, 1, 0, 1, 0, 0, 0, 1, 0]


def test_a_dispatch_that_was_compared_is_not_compared_again(engine):
    loaded = Loaded(engine, product())
    loaded.inputs[0].array[...] = 0
    loaded.run()  # its first
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not engine.confirm(loaded.program, loaded.inputs, loaded.outputs)
    assert engine.counts["verified"] == 1
