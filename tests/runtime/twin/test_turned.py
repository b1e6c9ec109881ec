"""Constant matrices in the order in which products read them fastest: the same bits, and nothing else is turned."""

import numpy as np
import pytest

from torchane.mil.build import Builder
from torchane.mil.ir import Program, literal
from torchane.runtime.twin import TwinDevice, load_program

RNG = np.random.default_rng(0)
W, X = RNG.standard_normal((48, 32)).astype(np.float16), RNG.standard_normal((3, 32)).astype(np.float16)


def run(program: Program, *arrays: np.ndarray) -> np.ndarray:
    device, ready = TwinDevice(), load_program(program, "test")
    given, results = [device.allocate(t) for t in ready.inputs], [device.allocate(t) for t in ready.outputs]
    for buffer, array in zip(given, arrays, strict=True):
        buffer.array[...] = array
    device.run(ready, given, results)
    return results[0].array


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("side", ["x", "y", "conv"])
def test_a_constant_gives_the_bits_of_an_input(side, rows):
    def program(is_constant: bool) -> Program:
        b = Builder()
        small = b.input("x", (1, 32, 1, rows) if side == "conv" else (rows, 32))
        shape = (48, 32, 1, 1) if side == "conv" else W.shape
        weight = literal(W.reshape(shape)) if is_constant else b.input("w", shape)
        if side == "conv":
            return b.program(b.conv(x=small, weight=weight))
        operands = {"x": weight, "y": small} if side == "x" else {"x": small, "y": weight}
        return b.program(b.matmul(**operands, transpose_x=False, transpose_y=True))

    x = X[:rows].T.reshape(1, 32, 1, rows) if side == "conv" else X[:rows]
    weight = W.reshape(48, 32, 1, 1) if side == "conv" else W
    assert np.array_equal(run(program(True), x), run(program(False), x, weight))


def test_a_constant_that_another_op_reads_stays_as_it_is():
    b = Builder()
    x, weight = b.input("x", (48, 32)), literal(W)
    product = b.matmul(x=x, y=weight, transpose_x=False, transpose_y=True)
    program = b.program(b.add(x=b.add(x=x, y=weight), y=b.reduce_sum(x=product, axes=(-1,), keep_dims=True)))
    wanted = (W + W).astype(np.float64) + (W.astype(np.float64) @ W.astype(np.float64).T).sum(-1, keepdims=True)
    assert np.allclose(run(program, W), wanted, rtol=0.02, atol=0.3)


def test_a_constant_that_two_products_read_in_two_orders_stays_as_it_is():
    b = Builder()
    x, weight = b.input("x", (3, 32)), literal(W)
    there = b.matmul(x=x, y=weight, transpose_x=False, transpose_y=True)
    wanted = (X.astype(np.float64) @ W.T.astype(np.float64)).astype(np.float16).astype(np.float64) @ W
    got = run(b.program(b.matmul(x=there, y=weight, transpose_x=False, transpose_y=False)), X)
    assert np.abs(got - wanted).max() < 2e-3 * np.abs(wanted).max()
