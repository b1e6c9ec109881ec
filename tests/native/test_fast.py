"""Products in `fast` arithmetic against float64 on operands rounded to bf16, on every instruction set that has them."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runs import halves

from torchane import native
from torchane.errors import DeviceError, UsageError
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.formats import narrowed, widened
from torchane.mil.ir import Program
from torchane.mil.types import DType
from torchane.runtime.twin import TwinDevice, load_program

SIZES = st.sampled_from([1, 2, 3, 11, 12, 13, 31, 32, 33, 64, 65, 100])
WITH_FAST = [name for name in (native.isas() if native.is_built() else []) if name in ("avx512", "amx") and native.has_fast()]

needs_fast = pytest.mark.skipif(not WITH_FAST, reason="this processor has no instructions for products of bf16 numbers")


@pytest.fixture(params=WITH_FAST)
def fast_isa(request: pytest.FixtureRequest):
    before = native.get_isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


def product(x: tuple[int, ...], y: tuple[int, ...], transpose_x: bool = False, transpose_y: bool = False) -> Program:
    b = Builder()
    return b.program(b.matmul(x=b.input("x", x), y=b.input("y", y), transpose_x=transpose_x, transpose_y=transpose_y))


def run(program: Program, *inputs: np.ndarray) -> np.ndarray:
    device, ready = TwinDevice(arithmetic="fast"), load_program(program, "test", "fast")
    out = np.full(ready.outputs[0].shape, np.nan, np.float16)
    device.run_arrays(ready, list(inputs), [out])
    return out


def bf16(x: np.ndarray) -> np.ndarray:
    return widened(narrowed(x, DType.BF16), DType.BF16)


def require_near(got: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Within k roundings of 2^-24 of the sum of sizes, and one rounding to fp16."""
    x, y = bf16(x), bf16(y)
    wanted = x @ y
    allowed = x.shape[-1] * 2.0**-24 * (np.abs(x) @ np.abs(y)) + 2.0**-11 * np.abs(wanted) + 2.0**-25
    assert (np.abs(got - wanted) <= allowed).all()


@needs_fast
@settings(max_examples=60, deadline=None)
@given(m=SIZES, n=SIZES, k=SIZES, tx=st.booleans(), ty=st.booleans(), batch=st.sampled_from([(), (1,), (2,), (2, 3)]), seed=st.integers(0, 99))
def test_any_shape_and_transposition_is_near_float64_of_rounded_operands(m, n, k, tx, ty, batch, seed):
    rng = np.random.default_rng(seed)
    x, y = halves(rng, *batch, *((k, m) if tx else (m, k))), halves(rng, *batch, *((n, k) if ty else (k, n)))
    before = native.get_isa()
    try:
        for name in WITH_FAST:
            native.set_isa(name)
            got = run(product(x.shape, y.shape, tx, ty), x, y)
            require_near(got, x.swapaxes(-1, -2) if tx else x, y.swapaxes(-1, -2) if ty else y)
    finally:
        native.set_isa(before)


@needs_fast
@pytest.mark.parametrize("k", [2047, 2048, 2049, 4097])
def test_a_long_inner_axis_is_summed_in_slabs(fast_isa: str, k: int):
    rng = np.random.default_rng(k)
    x, y = halves(rng, 37, k), halves(rng, k, 41)
    require_near(run(product(x.shape, y.shape), x, y), x, y)


@needs_fast
def test_operands_are_rounded_to_nearest_even(fast_isa: str):
    # Halves between two bf16 numbers, both ways; and all 65,536 numbers of fp16, times one.
    patterns = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = patterns[np.isfinite(patterns)]
    one = np.ones((1, 1), np.float16)
    got = run(product((finite.size, 1), (1, 1)), finite.reshape(-1, 1), one).reshape(-1)
    with np.errstate(over="ignore"):
        wanted = bf16(finite).astype(np.float16)
    np.testing.assert_array_equal(got, wanted)


@needs_fast
def test_infinities_and_nans_go_where_arithmetic_sends_them(fast_isa: str):
    x = np.array([[np.inf, 1, 0], [np.nan, 1, 1], [-np.inf, np.inf, 1], [1, 2, 3]], np.float16)
    y = np.array([[1, 0], [1, 1], [2, 2]], np.float16)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(run(product(x.shape, y.shape), x, y), x.astype(np.float64) @ y.astype(np.float64))


@needs_fast
def test_the_largest_number_of_fp16_stays_finite_inside(fast_isa: str):
    x = np.array([[65504, -65504]], np.float16)
    np.testing.assert_array_equal(run(product((1, 2), (2, 1)), x, np.ones((2, 1), np.float16)), [[0]])


@needs_fast
@pytest.mark.parametrize("shapes", [((300, 200), (200, 260)), ((4, 8, 65, 40), (4, 8, 40, 33))])
def test_any_number_of_threads_gives_the_same_bits(fast_isa: str, shapes, set_threads: Callable[[int], None]):
    rng = np.random.default_rng(1)
    x, y = halves(rng, *shapes[0]), halves(rng, *shapes[1])
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(run(product(x.shape, y.shape), x, y))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@needs_fast
def test_a_product_with_zeros_and_powers_of_two_keeps_all_digits(fast_isa: str):
    x = (2048 + np.arange(64, dtype=np.float16)).reshape(8, 8)
    b = Builder()
    moved = b.matmul(x=b.input("x", x.shape), y=np.roll(np.eye(8, dtype=np.float16), 3, axis=1) * np.float16(-0.5))
    program = b.program(moved)
    np.testing.assert_array_equal(run(program, x), np.roll(x, 3, axis=1) * np.float16(-0.5))
    np.testing.assert_array_equal(evaluate(program, {"x": x}, arithmetic="fast")[moved.name], run(program, x))


@needs_fast
def test_a_1x1_convolution_is_such_a_product(fast_isa: str):
    rng = np.random.default_rng(2)
    x, weight = halves(rng, 2, 40, 1, 70), halves(rng, 24, 40, 1, 1)
    b = Builder()
    program = b.program(b.conv(x=b.input("x", x.shape), weight=b.input("w", weight.shape)))
    got = run(program, x, weight)
    for index in range(2):
        require_near(got[index, :, 0], weight[:, :, 0, 0], x[index, :, 0])


@needs_fast
def test_everything_but_products_has_the_bits_of_exact(fast_isa: str):
    rng = np.random.default_rng(3)
    x = halves(rng, 8, 64)
    b = Builder()
    given_x = b.input("x", x.shape)
    program = b.program(b.softmax(x=b.mul(x=given_x, y=b.tanh(x=given_x)), axis=-1))
    exact = np.empty(x.shape, np.float16)
    TwinDevice().run_arrays(load_program(program, "test"), [x], [exact])
    np.testing.assert_array_equal(run(program, x), exact)


def test_without_such_instructions_it_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    before = native.get_isa()
    native.set_isa("base")
    try:
        with pytest.raises(UsageError, match='arithmetic "fast" needs instructions .* the twin uses base kernels here. Take "exact"'):
            TwinDevice(arithmetic="fast")
        with pytest.raises(DeviceError, match="no kernel here multiplies bf16"):
            load_program(product((2, 2), (2, 2)), "test", "fast")
    finally:
        native.set_isa(before)


@needs_fast
def test_a_program_loaded_for_other_kernels_does_not_run():
    ready = load_program(product((2, 2), (2, 2)), "test", "fast")
    device = TwinDevice(arithmetic="fast")
    before = native.get_isa()
    native.set_isa("base")
    try:
        with pytest.raises(ValueError, match="in fast arithmetic, and the kernels in use have none"):
            device.run_arrays(ready, [np.ones((2, 2), np.float16)] * 2, [np.ones((2, 2), np.float16)])
    finally:
        native.set_isa(before)
