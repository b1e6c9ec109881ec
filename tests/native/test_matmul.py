"""Matrix products on every instruction set against float64, for odd and even shapes and hard numbers."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runs import halves, run, ulps

from torchane import native
from torchane.mil.build import Builder
from torchane.mil.ir import Program, literal

SIZES = st.sampled_from([1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 65, 100])


def matmul(x: tuple[int, ...], y: tuple[int, ...], transpose_x: bool = False, transpose_y: bool = False) -> Program:
    b = Builder()
    return b.program(b.matmul(x=b.input("x", x), y=b.input("y", y), transpose_x=transpose_x, transpose_y=transpose_y))


def oracle(x: np.ndarray, y: np.ndarray, transpose_x: bool = False, transpose_y: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The product in float64, and how far a sum in fp32, in any order, and one rounding may lead away: k
    roundings of at most 2^-24 of the sum of sizes, then half a unit of fp16 (2^-25 among its subnormals)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    x, y = (x.swapaxes(-1, -2) if transpose_x else x), (y.swapaxes(-1, -2) if transpose_y else y)
    product = x @ y
    sizes = np.abs(x) @ np.abs(y)
    return product, x.shape[-1] * 2.0**-24 * sizes + 2.0**-11 * np.abs(product) + 2.0**-25


@settings(max_examples=40, deadline=None)
@given(m=SIZES, n=SIZES, k=SIZES, tx=st.booleans(), ty=st.booleans(), batch=st.sampled_from([(), (1,), (2,), (2, 3)]), seed=st.integers(0, 99))
def test_any_shape_and_transposition_is_near_float64(
    m: int, n: int, k: int, tx: bool, ty: bool, batch: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = halves(rng, *batch, *((k, m) if tx else (m, k)))
    y = halves(rng, *batch, *((n, k) if ty else (k, n)))
    wanted, allowed = oracle(x, y, tx, ty)
    before = native.get_isa()
    try:
        for name in native.isas():
            native.set_isa(name)
            assert (np.abs(run(matmul(x.shape, y.shape, tx, ty), x, y)[0] - wanted) <= allowed).all(), name
    finally:
        native.set_isa(before)


@pytest.mark.parametrize(("x", "y"), [((2, 5, 33, 40), (40, 17)), ((40, 9), (3, 2, 9, 8)), ((4, 1, 6, 7), (1, 3, 7, 5)), ((1, 1, 8, 8), (6, 8, 8))])
def test_leading_axes_broadcast(isa: str, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    left, right = halves(rng, *x), halves(rng, *y)
    wanted, allowed = oracle(left, right)
    got = run(matmul(x, y), left, right)[0]
    assert got.shape == wanted.shape
    assert (np.abs(got - wanted) <= allowed).all()


@pytest.mark.parametrize("k", [2048, 2049, 5000])
def test_a_long_inner_axis_is_summed_in_slabs(isa: str, k: int) -> None:
    rng = np.random.default_rng(0)
    x, y = halves(rng, 40, k, scale=0.1), halves(rng, 50, k, scale=0.1)
    wanted, allowed = oracle(x, y, transpose_y=True)
    assert (np.abs(run(matmul(x.shape, y.shape, transpose_y=True), x, y)[0] - wanted) <= allowed).all()


def test_small_whole_numbers_are_exact(isa: str) -> None:
    """Every sum here is a whole number below 2^11: fp16 holds it, so nothing may be rounded."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(-3, 4, (70, 90)).astype(np.float16), rng.integers(-3, 4, (90, 50)).astype(np.float16)
    assert np.array_equal(run(matmul(x.shape, y.shape), x, y)[0], x.astype(np.float64) @ y.astype(np.float64))


def test_all_eleven_digits_of_both_factors_count(isa: str) -> None:
    """1 + 2^-10 squared is 1 + 2^-9 + 2^-20; the last part, low times low, shows when the rest is taken away."""
    fine = np.float16(1 + 2**-10)
    x = np.array([[fine, -1, -(2.0**-9)]], np.float16)
    y = np.array([[fine], [1], [1]], np.float16)
    assert run(matmul(x.shape, y.shape), x, y)[0].item() == 2.0**-20


def test_subnormal_numbers_are_not_flushed(isa: str) -> None:
    x = np.full((32, 32), 2.0**-24, np.float16)
    x[:, 1] = 3 * 2.0**-24
    y = np.zeros((32, 32), np.float16)
    y[0], y[1] = 1024, 2.0**-1
    assert np.array_equal(run(matmul(x.shape, y.shape), x, y)[0], (x.astype(np.float64) @ y.astype(np.float64)).astype(np.float16))


def test_products_far_below_fp16_add_up(isa: str) -> None:
    """2^-48 each, 2^16 of them in two steps: in fp32 they are normal numbers."""
    x, y = np.full((1, 4096), 2.0**-24, np.float16), np.full((4096, 1), 2.0**-12, np.float16)
    assert run(matmul(x.shape, y.shape), x, y)[0].item() == 2.0**-24


def test_the_largest_numbers_cancel(isa: str) -> None:
    """What is left is a multiple of the last digit that fp32 holds beside the largest product."""
    x = np.array([[65504, 65504, 64]], np.float16)
    y = np.array([[65504], [-65504], [64]], np.float16)
    assert run(matmul(x.shape, y.shape), x, y)[0].item() == 4096


@pytest.mark.parametrize("batch", [(), (5,)])
def test_infinities_and_nans_go_where_arithmetic_sends_them(isa: str, batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    x, y = halves(rng, *batch, 40, 64), halves(rng, *batch, 64, 48)
    x[..., 3, 5], x[..., 7, 9], y[..., 11, 2] = np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        wanted = (x.astype(np.float64) @ y.astype(np.float64)).astype(np.float16)
    got = run(matmul(x.shape, y.shape), x, y)[0]
    assert np.array_equal(np.isnan(got), np.isnan(wanted))
    assert np.array_equal(got[np.isinf(wanted)], wanted[np.isinf(wanted)])
    assert np.isfinite(got).sum() == np.isfinite(wanted).sum()


def test_a_sum_beyond_fp16_is_infinite(isa: str) -> None:
    x = np.full((1, 64), 64.0, np.float16)
    assert run(matmul((1, 64), (1, 64), transpose_y=True), x, x * 16)[0].item() == np.inf


@pytest.mark.parametrize("shapes", [((96, 130), (130, 200)), ((6, 64, 32), (6, 32, 64)), ((70, 4100), (4100, 40))])
def test_any_number_of_threads_gives_the_same_bits(isa: str, shapes: tuple, set_threads: Callable[[int], None]) -> None:
    rng = np.random.default_rng(0)
    x, y = (halves(rng, *shape) for shape in shapes)
    results = []
    for count in (1, 2, 3, 5):
        set_threads(count)
        results.append(run(matmul(x.shape, y.shape), x, y)[0].tobytes())
    assert len(set(results)) == 1


def test_instruction_sets_without_tiles_give_the_same_bits() -> None:
    """Each number of the result is one sum along k, whatever the width of the vectors."""
    rng = np.random.default_rng(0)
    x, y = halves(rng, 45, 300), halves(rng, 77, 300)
    before, results = native.get_isa(), set()
    for name in native.isas():
        if name != "amx":
            native.set_isa(name)
            results.add(run(matmul(x.shape, y.shape, transpose_y=True), x, y)[0].tobytes())
    native.set_isa(before)
    assert len(results) == 1


@pytest.mark.parametrize("batch", [1, 3])
def test_a_1x1_convolution_is_a_product_and_takes_a_bias(isa: str, batch: int) -> None:
    rng = np.random.default_rng(0)
    weight, bias = halves(rng, 48, 20, 1, 1), halves(rng, 48)
    b = Builder()
    x = b.input("x", (batch, 20, 2, 33))
    program = b.program(b.conv(x=x, weight=literal(weight)), b.conv(x=x, weight=literal(weight), bias=literal(bias)))
    given = halves(rng, batch, 20, 2, 33)
    plain, biased = run(program, given)
    wanted, allowed = oracle(weight.reshape(48, 20), given.reshape(batch, 20, 66))
    assert (np.abs(plain.reshape(batch, 48, 66) - wanted) <= allowed).all()
    assert ulps(biased, (plain.astype(np.float64) + bias.reshape(48, 1, 1)).astype(np.float16)).max() == 0


@pytest.mark.parametrize("few", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_few_rows_or_columns_have_the_bits_that_they_have_among_many(isa: str, few: int, transposed: bool) -> None:
    """Sums take their products in one order, whichever kernel takes them; tiles of AMX have an order of their own."""
    if isa == "amx":
        pytest.skip("AMX adds in another order")
    rng = np.random.default_rng(few)
    x, y = halves(rng, 40, 333), halves(rng, 333, 150)
    if transposed:
        y = np.ascontiguousarray(y.T)
    many = run(matmul(x.shape, y.shape, False, transposed), x, y)[0]
    rows = run(matmul((few, 333), y.shape, False, transposed), x[:few], y)[0]
    assert np.array_equal(rows, many[:few])
    y = np.ascontiguousarray(y.T) if transposed else y
    columns = run(matmul(x.shape, (333, few)), x, np.ascontiguousarray(y[:, :few]))[0]
    assert np.array_equal(columns, many[:, :few])
