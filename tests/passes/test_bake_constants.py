"""Frozen weights become constants where products and element-wise ops read them, and inputs elsewhere."""

import numpy as np
import pytest

from torchane import chips
from torchane.abi.frozen import FROZEN_PATH, blobs_of, stored
from torchane.abi.ports import port_layout, weight_port_layout
from torchane.mil.build import Builder
from torchane.mil.constants import map_literals, unpack_constants
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Blob, Literal, Program
from torchane.passes import Frozen
from torchane.passes.bake_constants import bake_constants

RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, 64, 1, 32)).astype(np.float16)
W = (RNG.standard_normal((96, 64)) / 8).astype(np.float16)
V = RNG.standard_normal(64).astype(np.float16)


def always(inner: int, outer: int, columns: int) -> bool:
    return True


def program(turned: bool = False, sums_too: bool = False) -> Program:
    """W @ x, or W.T @ (W @ x); the vector v is added before. sums_too: the rows of W are summed up."""
    b = Builder()
    x, w, v = b.input("x", (1, 64, 1, 32)), b.input("w", (1, 1, 96, 64)), b.input("v", (1, 1, 1, 64))
    shifted = b.add(x=x, y=b.reshape(x=v, shape=(1, 64, 1, 1)))
    y = b.matmul(x=w, y=b.reshape(x=shifted, shape=(1, 1, 64, 32)))
    if turned:
        y = b.matmul(x=w, y=y, transpose_x=True)
    if sums_too:
        y = b.add(x=y, y=b.reduce_sum(x=w, axes=(3,), keep_dims=True))
    return b.program(b.reshape(x=y, shape=(1, y.shape[2], 1, 32)), b.exp(x=shifted))


LAYOUTS = {"w": weight_port_layout((96, 64)), "v": weight_port_layout((64,)), "x": port_layout((64, 32), (0, 1))}


def bake(made: Program, chip: str = "portable", form: str = "fp16", pays=always):
    return bake_constants(made, chips.load(chip), Frozen({"w": form, "v": "fp16"}, pays), LAYOUTS)


def run(made: Program, constants=()) -> list[np.ndarray]:
    """The results, the file's numbers put in their places."""
    weights = {1: W.astype(np.float32), 2: V.astype(np.float32)}
    found = {}
    for constant, places in zip(constants, blobs_of(constants), strict=True):
        arrays = stored(constant, weights[constant.position])
        found.update({place.offset: array for place, array in zip(places, arrays, strict=True)})

    def filled(literal: Literal) -> Literal:
        if not isinstance(literal.value, Blob):
            return literal
        assert literal.value.path == FROZEN_PATH
        return Literal(literal.type, np.ascontiguousarray(found[literal.value.offset].reshape(literal.shape)))

    given = {"x": X, "w": W.reshape(1, 1, 96, 64), "v": V.reshape(1, 1, 1, 64)}
    return list(evaluate(unpack_constants(map_literals(made, filled)), {var.name: given[var.name] for var in made.inputs}).values())


def kinds(made: Program) -> list[str]:
    return [op.kind.name for op in made.ops]


@pytest.mark.parametrize("turned", [False, True])
def test_products_are_convolutions_with_the_same_numbers(turned: bool) -> None:
    baked, constants = bake(program(turned))
    assert [var.name for var in baked.inputs] == ["x"] and kinds(baked).count("conv") == 1 + turned and "matmul" not in kinds(baked)
    assert [constant.is_transposed for constant in constants if constant.position == 1] == [False, True][: 1 + turned]
    for found, wanted in zip(run(baked, constants), run(program(turned)), strict=True):
        np.testing.assert_allclose(found.astype(np.float32), wanted.astype(np.float32), rtol=2e-3, atol=2e-2)


def test_where_a_convolution_does_not_pay_the_constant_is_multiplied_as_it_lies() -> None:
    baked, constants = bake(program(True), pays=lambda *sizes: False)
    assert "conv" not in kinds(baked) and kinds(baked).count("matmul") == 2 and [one.position for one in constants] == [2, 1]
    for found, wanted in zip(run(baked, constants), run(program(True)), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_weight_that_another_op_reads_stays_an_input() -> None:
    baked, constants = bake(program(sums_too=True))
    assert [var.name for var in baked.inputs] == ["x", "w"] and {one.position for one in constants} == {2}


def test_a_weight_that_nothing_reads_stays_an_input() -> None:
    b = Builder()
    x, _, v = b.input("x", (1, 64, 1, 32)), b.input("w", (1, 1, 96, 64)), b.input("v", (1, 1, 1, 64))
    baked, constants = bake(b.program(b.add(x=x, y=b.reshape(x=v, shape=(1, 64, 1, 1)))))
    assert [var.name for var in baked.inputs] == ["x", "w"] and [one.position for one in constants] == [2]


@pytest.mark.parametrize(
    ("chip", "form", "kind"),
    [("m4", "int8", "constexpr_affine_dequantize"), ("m5", "int8", "constexpr_blockwise_shift_scale"), ("m5", "int4", "constexpr_blockwise_shift_scale")],
)
def test_few_bits_are_spelled_as_the_chip_takes_them(chip: str, form: str, kind: str) -> None:
    baked, constants = bake(program(True), chip, form)
    assert kinds(baked).count(kind) == 1  # W; its transpose has its rows along the other axis, and is held in fp16
    assert [(one.form, one.rounded) for one in constants if one.position == 1] == [(form, form), ("fp16", form)]
    assert run(baked, constants)[0].shape == (1, 64, 1, 32)


def test_a_weight_of_which_a_part_is_read_stays_an_input():
    """A table of positions, of which the first rows are added: a slice of a view of it."""
    b = Builder()
    x, v = b.input("x", (1, 64, 1, 32)), b.input("v", (1, 1, 1, 64))
    rows = b.slice_by_size(x=b.reshape(x=v, shape=(1, 2, 1, 32)), begin=(0, 0, 0, 0), size=(1, 1, 1, 32))
    made = b.program(b.add(x=x, y=rows))
    baked, constants = bake(made)
    assert not constants and [var.name for var in baked.inputs] == ["x", "v"]
    for ours, theirs in zip(run(baked), run(made), strict=True):
        assert np.array_equal(ours, theirs)
