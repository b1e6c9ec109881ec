"""Products with a constant that moves numbers: the bits of the product, without it."""

import numpy as np
import pytest

from tests.native.kernel_runs import loaded, run
from torchane import native
from torchane.mil.build import Builder
from torchane.mil.ir import Program, literal
from torchane.runtime.twin.selection import pieces_of

ROWS, INNER, COLUMNS = 40, 24, 33


def matrix(rows: int, inner: int, kind: str, seed: int = 0) -> np.ndarray:
    """(rows, inner) with at most one number in a row."""
    rng = np.random.default_rng(seed)
    made = np.zeros((rows, inner), np.float16)
    if kind == "join":
        made[8 : 8 + inner] = np.eye(inner)
    elif kind == "halves":
        half = inner // 2
        made[:half, half:], made[half:inner, :half] = -np.eye(half), np.eye(half)
    elif kind == "any":
        there = rng.random(rows) < 0.8
        made[np.flatnonzero(there), rng.integers(0, inner, there.sum())] = rng.choice([1, -1, 2, -8], there.sum())
    return made


def program(constant: np.ndarray, side: str, batch: tuple[int, ...], is_constant: bool, turned: bool = False, other_turned: bool = False) -> Program:
    b = Builder()
    inner = constant.shape[1]
    shape = (*batch, inner, COLUMNS) if side == "x" else (*batch, COLUMNS, inner)
    shape = (*batch, *shape[-2:][::-1]) if other_turned else shape
    other = b.input("a", shape)
    stored = constant if (side == "x") != turned else np.ascontiguousarray(constant.T)
    operand = literal(stored) if is_constant else b.input("c", stored.shape)
    if side == "x":
        return b.program(b.matmul(x=operand, y=other, transpose_x=turned, transpose_y=other_turned))
    return b.program(b.matmul(x=other, y=operand, transpose_x=other_turned, transpose_y=turned))


def shape_of(constant: np.ndarray, side: str, batch: tuple[int, ...]) -> tuple[int, ...]:
    return (*batch, constant.shape[1], COLUMNS) if side == "x" else (*batch, COLUMNS, constant.shape[1])


def bits(array: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(array), np.float16(np.nan), array).view(np.uint16)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("batch", [(), (3,), (2, 5)])
@pytest.mark.parametrize("kind", ["join", "halves", "any", "zeros"])
@pytest.mark.parametrize("side", ["x", "y"])
def test_moved_numbers_have_the_bits_of_the_product(side, kind, batch, turned, isa):
    constant = matrix(ROWS, INNER, kind)
    rng = np.random.default_rng(1)
    given = (rng.standard_normal(shape_of(constant, side, batch)) * rng.choice([1e-6, 1, 1e4], shape_of(constant, side, batch))).astype(np.float16)
    given[rng.random(given.shape) < 0.2] = -0.0
    stored = constant if (side == "x") != turned else np.ascontiguousarray(constant.T)
    before = native.get_isa()
    native.set_isa(isa)
    try:
        (got,) = run(program(constant, side, batch, True, turned), given)
        (wanted,) = run(program(constant, side, batch, False, turned), given, stored)
    finally:
        native.set_isa(before)
    assert np.array_equal(bits(got), bits(wanted))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("side", ["x", "y"])
def test_a_number_that_is_infinite_or_none_gives_what_the_product_gives(side, bad):
    constant = matrix(ROWS, INNER, "join")
    given = np.random.default_rng(2).standard_normal(shape_of(constant, side, (2,))).astype(np.float16)
    given[1, 3, 4] = bad
    (got,) = run(program(constant, side, (2,), True), given)
    (wanted,) = run(program(constant, side, (2,), False), given, constant if side == "x" else np.ascontiguousarray(constant.T))
    assert np.array_equal(bits(got), bits(wanted)) and np.isnan(got).any()


def test_a_convolution_that_joins_channels_moves_them():
    constant = matrix(ROWS, INNER, "join")
    b = Builder()
    x = b.input("x", (2, INNER, 1, 16))
    given = np.random.default_rng(3).standard_normal((2, INNER, 1, 16)).astype(np.float16)
    (got,) = run(b.program(b.conv(x=x, weight=literal(constant.reshape(ROWS, INNER, 1, 1)))), given)
    assert np.array_equal(got, np.einsum("oc,nchw->nohw", constant.astype(np.float64), given.astype(np.float64)).astype(np.float16))


@pytest.mark.parametrize(
    ("change", "moves"),
    [(None, True), ((0, 0, 3.0), False), ((0, 0, 0.5), False), ((9, 0, 1.0), False), ((9, 1, np.nan), False)],
    ids=["one power of two a row", "no power of two", "less than 1", "two in a row", "not a number"],
)
def test_what_counts_as_moving(change, moves):
    constant = matrix(ROWS, INNER, "join")
    if change is not None:
        constant[change[:2]] = change[2]
    assert (pieces_of(constant) is not None) == moves


def test_rows_in_one_piece_are_copied_in_one_piece():
    assert pieces_of(matrix(ROWS, INNER, "join")) == [(0, 0, 8, 0.0), (8, 0, INNER, 1.0), (32, 0, 8, 0.0)]
    assert pieces_of(matrix(INNER, INNER, "halves")) == [(0, INNER // 2, INNER // 2, -1.0), (INNER // 2, 0, INNER // 2, 1.0)]


def test_a_step_that_moves_is_still_counted_as_a_product():
    device, ready = loaded(program(matrix(ROWS, INNER, "join"), "x", (), True))
    device.run(ready, [device.allocate(one) for one in ready.inputs], [device.allocate(one) for one in ready.outputs])
    assert device.executed == {"matmul": 1} and ready.stats.macs == ROWS * INNER * COLUMNS
