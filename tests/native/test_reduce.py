"""Reductions and softmax over any axes, against float64."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runs import halves, run, ulps

from torchane import native
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Program

SHAPES = st.lists(st.sampled_from([1, 2, 3, 7, 32, 65]), min_size=1, max_size=4)


def reduction(kind: str, shape: tuple[int, ...], axes: tuple[int, ...], keep_dims: bool = True) -> Program:
    b = Builder()
    return b.program(getattr(b, kind)(x=b.input("x", shape), axes=axes, keep_dims=keep_dims))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_axes_of_any_shape(data: st.DataObject) -> None:
    shape = tuple(data.draw(SHAPES, label="shape"))
    axes = tuple(data.draw(st.sets(st.integers(-len(shape), len(shape) - 1), min_size=1), label="axes"))
    kind = data.draw(st.sampled_from(["reduce_sum", "reduce_mean", "reduce_max", "reduce_min"]), label="kind")
    program = reduction(kind, shape, tuple({axis % len(shape) for axis in axes}), data.draw(st.booleans(), label="keep"))
    x = halves(np.random.default_rng(0), *shape)
    got, wanted = run(program, x)[0], evaluate(program, {"x": x}, arithmetic="ideal")[program.outputs[0].name]
    if kind in ("reduce_max", "reduce_min"):
        assert np.array_equal(got, wanted)
    else:  # sums of n numbers of size 1 in fp32, then one rounding to fp16
        assert (np.abs(got - wanted) <= x.size * 2.0**-22 + 2.0**-11 * np.abs(wanted)).all()


@pytest.mark.parametrize(("shape", "axes"), [((1, 700, 1, 96), (1,)), ((1, 96, 1, 700), (-1,)), ((3, 600, 40), (0, 1)), ((2, 3, 20000), (2,))])
def test_long_axes(isa: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    x = halves(np.random.default_rng(0), *shape)
    program = reduction("reduce_sum", shape, axes)
    wanted = x.astype(np.float64).sum(axis=axes, keepdims=True)
    sizes = np.abs(x.astype(np.float64)).sum(axis=axes, keepdims=True)
    assert (np.abs(run(program, x)[0] - wanted) <= 256 * 2.0**-24 * sizes + 2.0**-11 * np.abs(wanted)).all()


def test_sums_are_kept_in_fp32(isa: str) -> None:
    """4099 ones less 4096: in fp16 the ones would stop at 2048."""
    x = np.ones((1, 4100), np.float16)
    x[0, 0] = -4096
    assert run(reduction("reduce_sum", x.shape, (1,)), x)[0].item() == 3
    assert run(reduction("reduce_sum", (4100, 1, 1), (0,)), x.reshape(4100, 1, 1))[0].item() == 3


@pytest.mark.parametrize("kind", ["reduce_sum", "reduce_max", "reduce_min"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_nan_spoils_its_result_only(isa: str, kind: str, axis: int) -> None:
    x = halves(np.random.default_rng(0), 70, 90)
    x[5, 77] = np.nan
    x[6, 2] = np.inf
    program = reduction(kind, x.shape, (axis,))
    assert ulps(run(program, x)[0], evaluate(program, {"x": x})[program.outputs[0].name]).max() <= 1


def softmax(shape: tuple[int, ...], axis: int) -> Program:
    b = Builder()
    return b.program(b.softmax(x=b.input("x", shape), axis=axis))


@pytest.mark.parametrize(("shape", "axis"), [((3, 100), -1), ((2, 3, 17), 1), ((1, 300, 1, 70), 1), ((5, 1), -1), ((4, 6), 0), ((1, 8, 64, 64), 3), ((1, 40, 1), 1)])
def test_softmax_is_within_a_unit(isa: str, shape: tuple[int, ...], axis: int) -> None:
    x = halves(np.random.default_rng(0), *shape, scale=4)
    program = softmax(shape, axis)
    distance = ulps(run(program, x)[0], evaluate(program, {"x": x})[program.outputs[0].name])
    assert distance.max() <= 1
    assert (distance > 0).mean() < 0.01


@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_of_masked_and_of_extreme_rows(isa: str, axis: int) -> None:
    x = np.zeros((6, 6), np.float16)
    x[0] = [0, -np.inf, -65504, 1, 2, -10000]
    x[1] = [65504, 65504, -65504, 0, 0, 0]
    x[2] = -np.inf
    x[3] = np.nan
    x[4] = np.inf
    x = x if axis == 1 else x.T.copy()
    program = softmax((6, 6), axis)
    assert ulps(run(program, x)[0], evaluate(program, {"x": x})[program.outputs[0].name]).max() <= 1


@pytest.mark.parametrize(("shape", "axes"), [((1, 1000, 1, 200), (1,)), ((64, 1000), (1,)), ((3, 500, 70), (0, 2))])
def test_any_number_of_threads_gives_the_same_bits(isa: str, shape: tuple, axes: tuple, set_threads: Callable[[int], None]) -> None:
    x = halves(np.random.default_rng(0), *shape)
    results = set()
    for count in (1, 2, 3, 5):
        set_threads(count)
        results.add(run(reduction("reduce_sum", shape, axes), x)[0].tobytes())
    assert len(results) == 1


def test_every_instruction_set_sums_a_row_alike() -> None:
    x = halves(np.random.default_rng(0), 20, 1001)
    before, results = native.get_isa(), set()
    for name in native.isas():
        native.set_isa(name)
        results.add(run(reduction("reduce_sum", x.shape, (1,)), x)[0].tobytes())
    native.set_isa(before)
    assert len(results) == 1
