"""Chains of element-wise ops: the bits are those of the ops one by one."""

from collections.abc import Callable

import numpy as np
import pytest
from kernel_runs import halves, loaded, run, ulps

from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Program


def attention_backward(heads: int = 4, length: int = 64) -> Program:
    """dS = P (dP - rowsum(P dP)), scaled: ops on rows, a reduction, and one number per row."""
    b = Builder()
    p, dp = b.input("p", (1, heads, length, length)), b.input("dp", (1, heads, length, length))
    product = b.mul(x=p, y=dp)
    rows = b.reduce_sum(x=product, axes=(-1,), keep_dims=True)
    return b.program(b.mul(x=b.mul(x=p, y=b.sub(x=dp, y=rows)), y=0.125))


def gated(channels: int = 40, length: int = 3000) -> Program:
    """silu(x) * y in pieces, a gain per channel, a bias per place; intermediate values leave too."""
    b = Builder()
    x, y = b.input("x", (1, channels, 1, length)), b.input("y", (1, channels, 1, length))
    gain, bias = b.input("g", (1, channels, 1, 1)), b.input("b", (1, 1, 1, length))
    gate = b.mul(x=x, y=b.sigmoid(x=x))
    whole = b.add(x=b.mul(x=b.mul(x=gate, y=y), y=gain), y=bias)
    flat = b.reshape(x=whole, shape=(channels, 10, length // 10))
    return b.program(gate, b.maximum(x=flat, y=0.0), b.sub(x=1.0, y=whole))


def inputs_of(program: Program) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [halves(rng, *var.shape) for var in program.inputs]


@pytest.mark.parametrize("make", [attention_backward, gated])
def test_the_bits_are_those_of_one_op_after_the_other(isa: str, make: Callable[[], Program]) -> None:
    program = make()
    arrays = inputs_of(program)
    wanted = evaluate(program, {var.name: array for var, array in zip(program.inputs, arrays)})
    for got, var in zip(run(program, *arrays), program.outputs):
        assert ulps(got, wanted[var.name]).max() <= 1
    single = _one_by_one(program, arrays)
    for got, var in zip(run(program, *arrays), program.outputs):
        assert got.tobytes() == single[var.name].tobytes()


def _one_by_one(program: Program, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Every op in a program of its own, so that nothing can be chained."""
    values = {var.name: array for var, array in zip(program.inputs, arrays)}
    for op in program.ops:
        alone = program.with_(inputs=tuple(dict.fromkeys(op.inputs)), ops=(op,), outputs=op.outputs)
        values[op.output.name] = run(alone, *(values[var.name] for var in alone.inputs))[0]
    return values


@pytest.mark.parametrize("make", [attention_backward, gated])
def test_a_chain_is_one_step(make: Callable[[], Program]) -> None:
    _, ready = loaded(make())
    assert ready.tape.steps == 2  # the chain, and the ops that cost nothing
    assert ready.stats.scratch_bytes == 0


@pytest.mark.parametrize("make", [attention_backward, gated])
def test_any_number_of_threads_gives_the_same_bits(make: Callable[[], Program], set_threads: Callable[[int], None]) -> None:
    program = make()
    arrays = inputs_of(program)
    results = set()
    for count in (1, 2, 3, 5):
        set_threads(count)
        results.add(b"".join(array.tobytes() for array in run(program, *arrays)))
    assert len(results) == 1


def test_a_single_number_is_a_chain_too() -> None:
    b = Builder()
    x = b.input("x", (1, 1))
    program = b.program(b.add(x=b.mul(x=x, y=x), y=b.exp(x=x)))
    assert run(program, np.array([[2.0]], np.float16))[0].item() == np.float16(4 + np.float16(np.exp(2.0)))


def test_rows_longer_than_a_cache_are_reduced_alone() -> None:
    b = Builder()
    x = b.input("x", (2, 40000))
    program = b.program(b.reduce_max(x=b.mul(x=x, y=2.0), axes=(1,), keep_dims=True), b.softmax(x=x))
    given = halves(np.random.default_rng(0), 2, 40000, scale=3)
    largest, soft = run(program, given)
    assert np.array_equal(largest, 2 * given.max(axis=1, keepdims=True))
    assert ulps(soft, evaluate(program, {"x": given})[program.outputs[1].name]).max() <= 1
