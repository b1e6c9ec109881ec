"""Transposes, slices and concatenations move the right bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runs import loaded, run

from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate

SIZES = st.sampled_from([1, 2, 5, 8, 31, 64, 70])


def bits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2**15, shape, dtype=np.uint16).view(np.float16)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_transpose(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(SIZES, min_size=1, max_size=4), label="shape"))
    perm = tuple(data.draw(st.permutations(range(len(shape))), label="perm"))
    b = Builder()
    program = b.program(b.transpose(x=b.input("x", shape), perm=perm))
    x = bits(np.random.default_rng(0), *shape)
    assert run(program, x)[0].tobytes() == x.transpose(perm).tobytes()


@pytest.mark.parametrize(("shape", "perm"), [((300, 500), (1, 0)), ((8, 130, 16, 64), (0, 2, 1, 3)), ((8, 130, 16, 64), (3, 1, 0, 2)), ((1, 768, 1, 96), (0, 3, 2, 1))])
def test_large_transposes(shape: tuple[int, ...], perm: tuple[int, ...]) -> None:
    b = Builder()
    program = b.program(b.transpose(x=b.input("x", shape), perm=perm))
    x = bits(np.random.default_rng(0), *shape)
    assert run(program, x)[0].tobytes() == x.transpose(perm).tobytes()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_slice(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(SIZES, min_size=1, max_size=4), label="shape"))
    begin = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    size = tuple(data.draw(st.sampled_from([-1, *range(1, whole - start + 1)])) for whole, start in zip(shape, begin))
    b = Builder()
    cut = b.slice_by_size(x=b.input("x", shape), begin=begin, size=size)
    program = b.program(cut, b.mul(x=cut, y=2.0))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    wanted = evaluate(program, {"x": x})
    for got, var in zip(run(program, x), program.outputs):
        assert np.array_equal(got, wanted[var.name])


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_concat_and_split_along_any_axis(axis: int) -> None:
    b = Builder()
    rng = np.random.default_rng(0)
    shapes = [[3, 4, 5] for _ in range(3)]
    for shape, size in zip(shapes, (2, 7, 1)):
        shape[axis] = size
    joined = b.concat(values=tuple(b.input(f"x{i}", tuple(shape)) for i, shape in enumerate(shapes)), axis=axis)
    parts = b.split(x=joined, split_sizes=(4, 6), axis=axis)
    program = b.program(joined, *parts)
    arrays = [bits(rng, *shape) for shape in shapes]
    wanted = np.concatenate(arrays, axis=axis)
    got = run(program, *arrays)
    assert got[0].tobytes() == wanted.tobytes()
    assert got[1].tobytes() == np.split(wanted, [4], axis=axis)[0].tobytes()
    assert got[2].tobytes() == np.split(wanted, [4], axis=axis)[1].tobytes()


def test_what_only_changes_shape_moves_nothing() -> None:
    b = Builder()
    x = b.input("x", (1, 6, 1, 32))
    turned = b.transpose(x=b.reshape(x=b.exp(x=x), shape=(1, 1, 6, 32)), perm=(2, 1, 0, 3))
    half = b.slice_by_size(x=turned, begin=(3, 0, 0, 0), size=(3, 1, 1, 32))
    _, ready = loaded(b.program(b.matmul(x=half, y=half, transpose_y=True)))
    assert ready.tape.steps == 3  # the exponential, the product, and the names that cost nothing
