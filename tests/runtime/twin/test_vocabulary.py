"""A slice of a vocabulary's scores in one step has the bits of its ops as steps of their own, and is taken only where it may be."""

from typing import Any

import numpy as np
import pytest

import torchane.capture.vocabulary_ops as ops
from torchane import native
from torchane.mil.build import Builder
from torchane.mil.ir import Program, literal
from torchane.runtime.twin import TwinDevice, device, load_program

Numbers = dict[str, np.ndarray]
CODES = ops.CODE
CHANNELS = 24


def number(value: float) -> object:
    return literal(np.array(value, np.float16))


def scores(b: Builder, tokens: int, entries: int, *, by_token: bool, zero: float = 0.0, shift: int = 0) -> tuple[object, object, object]:
    """Scores, where the target is, and that times what leaves it out, as the passes write them."""
    x, weight = b.input("x", (1, 1, CHANNELS, tokens)), b.input("weight", (1, 1, entries, CHANNELS))
    made = b.matmul(x=x, y=weight, transpose_x=True, transpose_y=True) if by_token else b.matmul(x=weight, y=x, transpose_x=False, transpose_y=False)
    return b.maximum(x=made, y=number(-65504.0)), *targets(b, tokens, entries, by_token=by_token, zero=zero, shift=shift)


def targets(b: Builder, tokens: int, entries: int, *, by_token: bool, zero: float = 0.0, shift: int = 0) -> tuple[object, object]:
    """Where the target is, and that times what leaves it out."""
    code, codes = b.input("code", (1, 1, CODES, tokens)), np.roll(ops.code_matrix(entries).numpy(), shift, 1).astype(np.float16)[None, None]
    if by_token:
        alike = b.matmul(x=code, y=literal(codes), transpose_x=True, transpose_y=False)
    else:
        alike = b.matmul(x=literal(np.ascontiguousarray(codes.swapaxes(2, 3))), y=code, transpose_x=False, transpose_y=False)
    is_target = b.maximum(x=b.add(x=alike, y=number(1 - CODES)), y=number(zero))
    return is_target, b.mul(x=is_target, y=number(ops.LEFT_OUT))


def forward(tokens: int, entries: int, keeps: bool = False, **other: Any) -> Program:
    """keeps: the scores leave, too, in another view."""
    b = Builder()
    made, _, gap = scores(b, tokens, entries, by_token=True, **other)
    others = b.add(x=made, y=gap)
    top = b.reduce_max(x=others, axes=(3,), keep_dims=True)
    total = b.reduce_sum(x=b.exp(x=b.sub(x=others, y=top)), axes=(3,), keep_dims=True)
    own = b.reduce_max(x=b.add(x=made, y=b.sub(x=number(ops.LEFT_OUT), y=gap)), axes=(3,), keep_dims=True)
    return b.program(top, total, own, *([b.reshape(x=made, shape=(1, tokens, 1, entries))] if keeps else []))


def backward(tokens: int, entries: int) -> Program:
    b = Builder()
    taken, rest, grad = (b.input(name, (1, 1, 1, tokens)) for name in ("taken", "rest", "grad"))
    made, is_target, gap = scores(b, tokens, entries, by_token=False)
    powers = b.exp(x=b.sub(x=b.add(x=made, y=gap), y=taken))
    return b.program(b.mul(x=b.sub(x=powers, y=b.mul(x=is_target, y=rest)), y=grad))


def backward_of_kept(tokens: int, entries: int) -> Program:
    b = Builder()
    taken, rest, grad = (b.input(name, (1, 1, tokens, 1)) for name in ("taken", "rest", "grad"))
    made = b.reshape(x=b.input("kept", (1, tokens, 1, entries)), shape=(1, 1, tokens, entries))
    is_target, gap = targets(b, tokens, entries, by_token=True)
    powers = b.exp(x=b.sub(x=b.add(x=made, y=gap), y=taken))
    return b.program(b.mul(x=b.sub(x=powers, y=b.mul(x=is_target, y=rest)), y=grad))


def programs(tokens: int, entries: int) -> list[Program]:
    """Both ways, with scores that are kept and without."""
    return [forward(tokens, entries), forward(tokens, entries, keeps=True), backward(tokens, entries), backward_of_kept(tokens, entries)]


def inputs(tokens: int, entries: int, seed: int = 0) -> Numbers:
    """Some tokens' targets lie beyond the slice, some in none."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, entries + 40, tokens)
    code = (((target[None] >> np.arange(CODES)[:, None]) & 1) * 2 - 1) * (rng.random(tokens) < 0.9)
    made = {"x": rng.standard_normal((CHANNELS, tokens)), "weight": rng.standard_normal((entries, CHANNELS)) * 0.4, "code": code}
    made |= {"taken": rng.standard_normal(tokens) + 6, "rest": rng.random(tokens) * 256, "grad": rng.standard_normal(tokens) * 8}
    made |= {"kept": made["weight"] @ made["x"]}
    return {name: numbers.astype(np.float16) for name, numbers in made.items()}


def results(program: Program, given: Numbers, arithmetic: str, threads: int) -> tuple[list[np.ndarray], int]:
    """The outputs, and the number of steps."""
    twin = TwinDevice(arithmetic=arithmetic)
    ready = load_program(program, "test", arithmetic)
    surfaces, made = [twin.allocate(one) for one in ready.inputs], [twin.allocate(one) for one in ready.outputs]
    for buffer, var in zip(surfaces, program.inputs, strict=True):
        buffer.array[...] = given[var.name].reshape(buffer.array.shape)
    for buffer in made:
        buffer.array[...] = 7.0
    before = native.get_threads()
    native.set_threads(threads)
    try:
        twin.run(ready, surfaces, made)
    finally:
        native.set_threads(before)
    return [buffer.array for buffer in made], ready.tape.steps


def require_equal_bits(program: Program, given: Numbers, monkeypatch: pytest.MonkeyPatch, *, is_one: bool = True) -> list[np.ndarray]:
    made: list[np.ndarray] = []
    for arithmetic in ["exact", *(["fast"] if native.has_fast() else [])]:
        with monkeypatch.context() as patch:
            patch.setattr(device, "fuse_vocabulary", lambda steps, *_: list(steps))
            wanted, many = results(program, given, arithmetic, 1)
        for threads in (1, 3):
            made, few = results(program, given, arithmetic, threads)
            for one, other, var in zip(made, wanted, program.outputs, strict=True):
                assert np.array_equal(one.view(np.uint16), other.view(np.uint16)), (arithmetic, threads, var.name)
        assert (few < many) == is_one
    return made


@pytest.mark.parametrize(("tokens", "entries"), [(50, 200), (97, 1000), (33, 2050), (300, 77), (40, 9000), (5, 200)])
def test_both_ways_have_the_bits_of_their_ops(isa: str, tokens: int, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(tokens, entries)
    for program in programs(tokens, entries):
        made = require_equal_bits(program, given, monkeypatch)
        assert all(np.isfinite(one).all() for one in made) and len(np.unique(made[0])) >= min(tokens, 20)


FAULTS = {
    "a score of infinity": ("x", np.inf),
    "a score that is no number": ("weight", np.nan),
    "scores beyond fp16": ("x", 60000.0),
    "a code that is none": ("code", 0.5),
    "a code of another size": ("code", 3.0),
    "a taken number far below": ("taken", -60000.0),
    "a taken number that is none": ("taken", np.nan),
    "a rest below 0": ("rest", -3.0),
    "a rest of infinity": ("rest", np.inf),
    "a gradient of infinity": ("grad", np.inf),
    "a score of minus infinity": ("weight", -np.inf),
    "a kept score of infinity": ("kept", np.inf),
    "a kept score of minus infinity": ("kept", -np.inf),
    "a kept score that is no number": ("kept", np.nan),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_numbers_that_it_is_not_proven_for_have_the_bits_of_the_ops(isa: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, value = FAULTS[fault]
    given = inputs(60, 300)
    given[name].reshape(-1)[7] = value
    for program in programs(60, 300):
        require_equal_bits(program, given, monkeypatch)


def test_scores_alike_and_zeros_of_either_sign_have_the_bits_of_the_ops(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(64, 256)
    for x in (0.0, -0.0, 1.0):
        given["x"][...] = x
        given["weight"][...] = np.where(np.arange(256)[:, None] % 3, 0.0, -0.0)
        given["weight"][:, 0] = np.where(np.arange(256) % 5, 0.0, 10000.0)  # what leaves a target out takes this to 0
        given["kept"] = given["weight"] @ given["x"]
        for program in programs(64, 256):
            require_equal_bits(program, given, monkeypatch)


def test_other_numbers_in_the_ops_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    require_equal_bits(forward(50, 200, zero=0.5), inputs(50, 200), monkeypatch, is_one=False)
    require_equal_bits(forward(50, 200, shift=1), inputs(50, 200), monkeypatch, is_one=False)


def test_a_matrix_of_signs_laid_in_another_order_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        matrix = ops.code_matrix(200)
        patch.setattr(ops, "code_matrix", lambda entries: matrix.T.reshape(CODES, entries))  # the same numbers, row by row
        program = forward(50, 200)
    require_equal_bits(program, inputs(50, 200), monkeypatch, is_one=False)


def test_scores_that_something_else_reads_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    made, _, gap = scores(b, 50, 200, by_token=True)
    others = b.add(x=made, y=gap)
    top = b.reduce_max(x=others, axes=(3,), keep_dims=True)
    total = b.reduce_sum(x=b.exp(x=b.sub(x=others, y=top)), axes=(3,), keep_dims=True)
    own = b.reduce_max(x=b.add(x=made, y=b.sub(x=number(ops.LEFT_OUT), y=gap)), axes=(3,), keep_dims=True)
    require_equal_bits(b.program(top, total, own, b.relu(x=made)), inputs(50, 200), monkeypatch, is_one=False)


@pytest.mark.parametrize("score", [-70000.0, 0.0])
def test_kept_scores_are_those_of_the_product_and_finite(score: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target's is not moved; one of minus infinity is the least number of fp16."""
    given = inputs(50, 200)
    given["weight"][3] = 0
    given["weight"][3, 0], given["x"][0] = np.float16(score / 8), 8
    *_, kept = require_equal_bits(forward(50, 200, keeps=True), given, monkeypatch)
    wanted = given["x"].astype(np.float64).T @ given["weight"].astype(np.float64).T
    assert np.allclose(kept.reshape(50, 200)[:, 3], max(score, -65504.0)) and np.isfinite(kept).all()
    assert np.allclose(np.delete(kept.reshape(50, 200), 3, 1), np.delete(wanted, 3, 1), rtol=2**-7, atol=0.2)


def test_a_backward_leaves_kept_scores_as_they_are() -> None:
    """It may run again: with another loss scale, or a graph that is retained."""
    given = inputs(50, 200)
    before = given["kept"].copy()
    first, again = (results(backward_of_kept(50, 200), given, "exact", 1)[0][0] for _ in range(2))
    assert np.array_equal(first, again) and np.array_equal(given["kept"], before)
