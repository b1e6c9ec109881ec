"""A function of one number that is looked up has the bits of its ops, and is a table only where that is one function of one number, and worth it."""

from collections.abc import Callable

import numpy as np
import pytest

from torchane.mil.build import Builder
from torchane.mil.ir import Program, literal
from torchane.runtime.twin import TwinDevice, device, load_program
from torchane.runtime.twin.arena import place_scratch
from torchane.runtime.twin.arrays import TapeStep
from torchane.runtime.twin.schedule import Chain

SIZE = (1, 64, 1, 2048)


def number(value: float) -> object:
    return literal(np.array(value, np.float16))


def gelu(b: Builder, x: object) -> object:
    inner = b.mul(x=b.add(x=x, y=b.mul(x=b.mul(x=b.mul(x=x, y=x), y=x), y=number(0.0447))), y=number(0.798))
    return b.mul(x=b.mul(x=x, y=number(0.5)), y=b.add(x=b.tanh(x=inner), y=number(1.0)))


def layer(size: tuple[int, ...] = SIZE) -> Program:
    """A bias, GELU, and what of it joins other numbers and is summed."""
    b = Builder()
    x, other, bias = b.input("x", size), b.input("other", size), b.input("bias", (1, size[1], 1, 1))
    shifted = b.add(x=x, y=bias)
    given = gelu(b, shifted)
    joined = b.mul(x=given, y=other)
    return b.program(given, joined, b.reduce_sum(x=joined, axes=(3,), keep_dims=True))


def of_two(size: tuple[int, ...] = SIZE) -> Program:
    """Each op reads two arrays, or a number for each row."""
    b = Builder()
    x, other, bias = b.input("x", size), b.input("other", size), b.input("bias", (1, size[1], 1, 1))
    found = x
    for _ in range(5):
        found = b.mul(x=b.add(x=found, y=other), y=bias)
    return b.program(found)


def steps_of(program: Program, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The families of the micros of all chains, in order."""
    found: list[TapeStep] = []
    monkeypatch.setattr(device, "place_scratch", lambda steps: (found.extend(steps), place_scratch(steps))[1])
    load_program(program, "layer")
    return [micro.family for step in found if isinstance(step, Chain) for micro in step.micros]


def run(program: Program, arithmetic: str = "exact") -> tuple[bytes, dict[str, int]]:
    rng = np.random.default_rng(0)
    arrays = [(rng.standard_normal(var.shape) * 2).astype(np.float16) for var in program.inputs]
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)  # NaNs of all kinds, too
    arrays[0].reshape(-1)[: every.size] = every
    outputs = [np.empty(var.shape, np.float16) for var in program.outputs]
    twin = TwinDevice(arithmetic=arithmetic)
    twin.run_arrays(load_program(program, "layer", arithmetic), arrays, outputs)
    return b"".join(array.tobytes() for array in outputs), dict(twin.executed)


def test_what_is_looked_up_has_the_bits_of_its_ops_and_counts_as_them(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = run(layer())
    monkeypatch.setattr(device, "tabulate", lambda *given: None)
    assert looked_up == run(layer())


def test_a_function_behind_an_op_of_two_operands_is_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    families = steps_of(layer(), monkeypatch)
    assert families.count("table") == 1 and len(families) == 4, "bias, table, product, sum"


@pytest.mark.parametrize("program", [of_two, lambda: layer((1, 64, 1, 512))], ids=["two operands", "few numbers"])
def test_nothing_else_becomes_a_table(program: Callable[[], Program], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "table" not in steps_of(program(), monkeypatch)


def test_a_cheap_function_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    x = b.input("x", SIZE)
    program = b.program(b.add(x=b.mul(x=x, y=x), y=number(1.0)))
    assert "table" not in steps_of(program, monkeypatch)


def test_a_value_inside_that_leaves_has_a_table_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def program() -> Program:
        b = Builder()
        x = b.input("x", SIZE)
        given = b.tanh(x=gelu(b, x))
        return b.program(given, gelu(b, given))

    families = steps_of(program(), monkeypatch)
    assert families[-2:] == ["table", "table"], "what leaves, and what comes of it"
    looked_up = run(program())
    monkeypatch.setattr(device, "tabulate", lambda *given: None)
    assert looked_up == run(program())


def test_a_function_of_several_operands_of_a_chain_is_one_table_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def program() -> Program:
        b = Builder()
        x, other = b.input("x", SIZE), b.input("other", SIZE)
        total = b.add(x=x, y=other)
        squared = b.mul(x=total, y=other)
        return b.program(b.add(x=b.tanh(x=b.exp(x=total)), y=b.mul(x=b.tanh(x=b.exp(x=squared)), y=b.tanh(x=b.exp(x=b.sub(x=squared, y=x))))))

    assert steps_of(program(), monkeypatch).count("table") == 3
    looked_up = run(program())
    monkeypatch.setattr(device, "tabulate", lambda *given: None)
    assert looked_up == run(program())


def test_engine_arithmetic_keeps_its_own_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr(device, "tabulate", lambda *given: called.append(given))
    load_program(layer(), "layer", "engine")
    assert not called


def test_a_function_that_nothing_reads_stays_ops(monkeypatch):
    b = Builder()
    x = b.input("x", SIZE)
    b.tanh(x=b.exp(x=b.tanh(x=x)))
    families = steps_of(b.program(b.transpose(x=x, perm=(0, 3, 2, 1))), monkeypatch)
    assert families == ["unary"] * 3
