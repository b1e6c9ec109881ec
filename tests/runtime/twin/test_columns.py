"""Which numbers a thread computes: those that it computed in the step before; and no result depends on it."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from torchane.mil.build import Builder
from torchane.mil.ir import Program
from torchane.runtime.twin import device
from torchane.runtime.twin.arrays import TapeStep
from torchane.runtime.twin.columns import share_columns
from torchane.runtime.twin.schedule import Chain


def layer(columns: int = 640, heads: int = 4) -> Program:
    """A product over columns, ops on all of it, on rows and on heads, sums of rows and of columns, and a product again."""
    b = Builder()
    x, w = b.input("x", (1, 1, 32, columns)), b.input("w", (1, 1, 32, 32))
    gain, turn = b.input("g", (1, 32, 1, 1)), b.input("t", (1, 8, 1, columns // 10))
    y = b.matmul(x=w, y=x)
    shifted = b.add(x=b.mul(x=y, y=0.5), y=x)
    gained = b.mul(x=b.reshape(x=shifted, shape=(1, 32, 1, columns)), y=gain)
    turned = b.mul(x=b.reshape(x=gained, shape=(heads, 8, 10, columns // 10)), y=turn)
    rows = b.reduce_sum(x=b.mul(x=gained, y=gained), axes=(3,), keep_dims=True)
    down = b.reduce_sum(x=gained, axes=(1,), keep_dims=True)
    last = b.add(x=b.matmul(x=w, y=b.reshape(x=turned, shape=(1, 1, 32, columns))), y=1.0)
    return b.program(last, shifted, rows, b.mul(x=gained, y=down))


def given(program: Program) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal(var.shape) * 0.5).astype(np.float16) for var in program.inputs]


def computed(program: Program, arrays: Sequence[np.ndarray]) -> bytes:
    loaded = device.load_program(program, "layer")
    outputs = [np.empty(var.shape, np.float16) for var in program.outputs]
    device.TwinDevice().run_arrays(loaded, arrays, outputs)
    return b"".join(array.tobytes() for array in outputs)


def chains_of(program: Program, monkeypatch: pytest.MonkeyPatch) -> list[Chain]:
    found: list[TapeStep] = []

    def kept(steps: Sequence[TapeStep]) -> None:
        share_columns(steps)
        found.extend(steps)

    monkeypatch.setattr(device, "share_columns", kept)
    device.load_program(program, "layer")
    return [step for step in found if isinstance(step, Chain)]


def test_chains_take_the_columns_of_the_product_that_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {chain.columns for chain in chains_of(layer(), monkeypatch)} == {640}


def test_few_columns_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {chain.columns for chain in chains_of(layer(80), monkeypatch)} == {32 * 80}


def test_after_products_that_threads_take_whole_a_chain_is_cut_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    x, y = b.input("x", (8, 16, 300)), b.input("y", (8, 300, 300))
    chains = chains_of(b.program(b.add(x=b.matmul(x=x, y=y), y=1.0)), monkeypatch)
    assert [chain.columns for chain in chains] == [8 * 16 * 300]


@pytest.mark.parametrize("columns", [1, 7, 64, 128, 256, 320, 640, 5120, 20480, 10**9])
def test_no_bit_depends_on_the_period_or_the_threads(columns: int, monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None]) -> None:
    program = layer()
    arrays = given(program)
    wanted = computed(program, arrays)

    def other(steps: Sequence[TapeStep]) -> None:
        for step in steps:
            if isinstance(step, Chain):
                step.columns = columns

    monkeypatch.setattr(device, "share_columns", other)
    for count in (1, 2, 3, 7):
        set_threads(count)
        assert computed(program, arrays) == wanted
