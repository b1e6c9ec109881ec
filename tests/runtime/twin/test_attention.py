"""Attention in one step has the bits of its parts as steps of their own, and is taken only where it may be."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from torchane import native
from torchane.mil.build import Builder
from torchane.mil.ir import Program, literal
from torchane.runtime.twin import TwinDevice, device, load_program

Bits = list[np.ndarray]

FAR_BELOW = -30000.0


def results(program: Program, inputs: dict[str, np.ndarray], arithmetic: str, threads: int) -> tuple[Bits, int, int]:
    """The outputs' bits, the number of steps, the bytes of scratch."""
    twin = TwinDevice(arithmetic=arithmetic)
    ready = load_program(program, "test", arithmetic)
    given, made = [twin.allocate(one) for one in ready.inputs], [twin.allocate(one) for one in ready.outputs]
    for buffer, var in zip(given, program.inputs, strict=True):
        buffer.array[...] = inputs[var.name]
    before = native.get_threads()
    native.set_threads(threads)
    try:
        for buffer in made:
            buffer.array[...] = np.nan
        twin.run(ready, given, made)
    finally:
        native.set_threads(before)
    return [buffer.array.view(np.uint16) for buffer in made], ready.tape.steps, ready.stats.scratch_bytes


def require_equal_bits(program: Program, inputs: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, *, fewer_steps: int, exact: bool = True) -> None:
    for arithmetic in [*(["exact"] if exact else []), *(["fast"] if native.has_fast() else [])]:
        with monkeypatch.context() as patch:
            patch.setattr(device, "fuse_attention", lambda steps, *_: list(steps))
            wanted, many, scratch = results(program, inputs, arithmetic, 1)
        for threads in (1, 3):
            found, few, less = results(program, inputs, arithmetic, threads)
            for one, other, var in zip(found, wanted, program.outputs, strict=True):
                assert np.array_equal(one, other), (arithmetic, threads, var.name, int((one != other).sum()))
        is_one_step = arithmetic == "fast" or not native.needs_finite()
        assert many - few == (fewer_steps if is_one_step else 0)
        assert less <= scratch


def forward(b: Builder, heads: tuple[int, ...], m: int, n: int, d: int, mask: Any, *, on_the_left: bool, keep: bool = True) -> tuple[Any, ...]:
    """y and P of attention with q, k and v as the passes lay them: (heads, D, S)."""
    q, k, v = b.input("q", (*heads, d, m)), b.input("k", (*heads, d, n)), b.input("v", (*heads, d, n))
    scores = b.matmul(x=q, y=k, transpose_x=True, transpose_y=False)
    p = b.softmax(x=scores if mask is None else b.add(x=scores, y=mask), axis=len(heads) + 1)
    y = b.matmul(x=p, y=v, transpose_x=False, transpose_y=True) if on_the_left else b.matmul(x=v, y=p, transpose_x=False, transpose_y=True)
    return (y, b.identity(x=p)) if keep else (y,)


def backward(b: Builder, heads: tuple[int, ...], m: int, n: int, d: int, p: Any) -> tuple[Any, ...]:
    """The gradients in v, k and q, as the passes write them."""
    q, k, v, g = b.input("q", (*heads, d, m)), b.input("k", (*heads, d, n)), b.input("v", (*heads, d, n)), b.input("g", (*heads, d, m))
    p = p(q, k) if callable(p) else p
    dv = b.matmul(x=g, y=p, transpose_x=False, transpose_y=False)
    dp = b.matmul(x=g, y=v, transpose_x=True, transpose_y=False)
    total = b.reduce_sum(x=b.mul(x=dp, y=p), axes=(len(heads) + 1,), keep_dims=True)
    s = b.mul(x=p, y=b.sub(x=dp, y=total))
    dk = b.matmul(x=q, y=s, transpose_x=False, transpose_y=False)
    turned = b.matmul(x=s, y=q, transpose_x=True, transpose_y=True)  # the same numbers by the other side
    return dv, dk, b.matmul(x=k, y=s, transpose_x=False, transpose_y=True), turned, b.matmul(x=s, y=k, transpose_x=False, transpose_y=True)


def normal(seed: int, program: Program, scale: float = 0.5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {var.name: (rng.standard_normal(var.shape) * scale).astype(np.float16) for var in program.inputs}  # type: ignore[arg-type]


def causal(m: int, n: int, below: float = FAR_BELOW, window: int | None = None) -> np.ndarray:
    row, column = np.arange(m)[:, None] + n - m, np.arange(n)
    kept = (column <= row) & (True if window is None else column > row - window)
    return np.where(kept, 0, below).astype(np.float16)


def rows_of_probabilities(m: int, n: int, heads: tuple[int, ...], seed: int = 3) -> np.ndarray:
    numbers = np.random.default_rng(seed).random((*heads, m, n)) * (causal(m, n) == 0)
    return (numbers / numbers.sum(-1, keepdims=True)).astype(np.float16)


MASKS: dict[str, Callable[[int, int], np.ndarray | None]] = {
    "causal": causal,
    "causal, infinite": lambda m, n: causal(m, n, -np.inf),
    "a window": lambda m, n: causal(m, n, window=50),
    "not far enough below": lambda m, n: causal(m, n, -60.0),
    "of one row": lambda m, n: causal(1, n)[:, ::-1] if m != n else causal(n, n)[n // 2 : n // 2 + 1],
    "a row of nothing": lambda m, n: np.where(np.arange(m)[:, None] == 5, -np.inf, causal(m, n)).astype(np.float16),
    "none": lambda m, n: None,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("on_the_left", [True, False])
def test_forward_has_the_bits_of_its_parts(isa: str, mask: str, on_the_left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for m, n, d in ((200, 200, 24), (70, 333, 33)):
        b = Builder()
        numbers = MASKS[mask](m, n)
        made = forward(b, (2, 3), m, n, d, None if numbers is None else literal(numbers.reshape(1, 1, -1, n)), on_the_left=on_the_left)
        program = b.program(*made)
        require_equal_bits(program, normal(1, program, 2.0), monkeypatch, fewer_steps=2)


def test_backward_has_the_bits_of_its_parts(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for m, n, d in ((200, 200, 24), (70, 333, 33)):
        b = Builder()
        p = b.input("p", (1, 4, m, n))
        program = b.program(*backward(b, (1, 4), m, n, d, p))
        require_equal_bits(program, normal(2, program) | {"p": rows_of_probabilities(m, n, (1, 4))}, monkeypatch, fewer_steps=6)


def test_a_backward_that_computes_p_again_has_the_bits_of_its_parts(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for m, n in ((200, 200), (64, 320)):
        b = Builder()
        mask = literal(causal(m, n).reshape(1, 1, m, n))

        def again(q: Any, k: Any, b: Builder = b, mask: Any = mask) -> Any:
            return b.softmax(x=b.add(x=b.matmul(x=q, y=k, transpose_x=True, transpose_y=False), y=mask), axis=3)

        program = b.program(*backward(b, (1, 4), m, n, 24, again))
        require_equal_bits(program, normal(4, program, 1.0), monkeypatch, fewer_steps=8)


def test_no_array_of_scores_is_left_where_p_is_not_kept() -> None:
    b = Builder()
    program = b.program(*forward(b, (1, 4), 512, 512, 32, literal(causal(512, 512)[None, None]), on_the_left=True, keep=False))
    if native.needs_finite():
        pytest.skip("kernels that need finite operands take attention apart")
    assert load_program(program, "test").stats.scratch_bytes == 0


@pytest.mark.parametrize("name", ["q", "k", "v", "g"])
@pytest.mark.parametrize("number", [np.inf, np.nan, 60000.0])
def test_numbers_out_of_range_spread_as_they_do_in_the_parts(name: str, number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    made = forward(b, (1, 4), 200, 200, 24, literal(causal(200, 200)[None, None]), on_the_left=False)
    ahead = b.program(*made)
    b = Builder()
    p = b.input("p", (1, 4, 200, 200))
    back = b.program(*backward(b, (1, 4), 200, 200, 24, p))
    for program, steps in ((ahead, 2), (back, 6)):
        given = normal(5, program) | {"p": rows_of_probabilities(200, 200, (1, 4))}
        if name not in given:
            continue
        given[name][0, 1, 3, 180] = number  # behind what the first blocks of a causal mask see
        require_equal_bits(program, given, monkeypatch, fewer_steps=steps)


def test_scores_that_could_outweigh_a_mask_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    program = b.program(*forward(b, (1, 4), 200, 200, 24, literal(causal(200, 200)[None, None]), on_the_left=True))
    given = normal(6, program)
    given["q"][0, 2, :, 150:], given["k"][0, 2, :, 195:] = 40.0, 40.0  # scores of 38,400, more than the mask takes away
    require_equal_bits(program, given, monkeypatch, fewer_steps=2)


def test_gradients_that_overflow_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    p = b.input("p", (1, 4, 200, 200))
    program = b.program(*backward(b, (1, 4), 200, 200, 24, p))
    given = normal(7, program) | {"p": rows_of_probabilities(200, 200, (1, 4))}
    given["g"][...], given["v"][..., 195:] = 60.0, 60.0  # 86,400, where a causal mask has 0
    require_equal_bits(program, given, monkeypatch, fewer_steps=6)


def test_a_mask_that_is_given_may_be_one_for_each_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    mask = b.input("mask", (3, 1, 1, 100))
    program = b.program(*forward(b, (3, 2), 100, 100, 16, mask, on_the_left=True))
    given = normal(8, program)
    given["mask"] = np.where(np.arange(100) < np.array([40, 70, 100])[:, None], 0, -np.inf).astype(np.float16).reshape(3, 1, 1, 100)
    require_equal_bits(program, given, monkeypatch, fewer_steps=2)


def test_what_else_reads_scores_or_their_gradient_keeps_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    q, k, v = (b.input(name, (1, 4, 16, 100)) for name in "qkv")
    scores = b.matmul(x=q, y=k, transpose_x=True, transpose_y=False)
    p = b.softmax(x=scores, axis=3)
    program = b.program(b.matmul(x=p, y=v, transpose_x=False, transpose_y=True), b.identity(x=scores))
    require_equal_bits(program, normal(9, program), monkeypatch, fewer_steps=0)


def test_probabilities_that_something_else_reads_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    q, k, v = (b.input(name, (1, 4, 16, 100)) for name in "qkv")
    p = b.softmax(x=b.matmul(x=q, y=k, transpose_x=True, transpose_y=False), axis=3)
    y = b.matmul(x=p, y=v, transpose_x=False, transpose_y=True)
    program = b.program(y, b.reduce_sum(x=p, axes=(2,)))
    require_equal_bits(program, normal(10, program), monkeypatch, fewer_steps=2)


def test_the_step_refuses_parts_that_do_not_fit() -> None:
    right: dict[str, Any] = {
        "m": 100, "n": 100, "batch": (4,), "mask": None, "live": [100, 100], "gap": [0.0, 0.0], "p": None, "gradient": None,
        "probabilities": ((2, 0), (3, 0), (0, 0), (100, 100, 16), True, False, (1600,), (1600,)),
        "readers": [(((0, 0), (4, 0), (5, 0), (100, 16, 100), False, True, (10000,), (1600,)), False, True)],
    }  # fmt: skip

    def tape() -> Any:
        inputs = [(4, 16, 100)] * 3
        return native.Tape(name="test", inputs=inputs, outputs=[(4, 100, 16)], constants=np.zeros(0, np.float16), scratch=0)

    tape().attention(["matmul"], **right)
    wrong: list[tuple[str, Any, str]] = [
        ("m", 99, "another size"),
        ("live", [100], "live columns"),
        ("live", [100, 101], "live columns"),
        ("probabilities", None, "neither"),
        ("batch", (8,), "reaches"),
        ("mask", ((1, 0), (0,), 0), "reaches"),
        ("readers", [(right["readers"][0][0], True, True)], "does not fit"),
        ("readers", [(right["readers"][0][0], False, False)], "another size"),
    ]
    for name, value, why in wrong:
        with pytest.raises(ValueError, match=why):
            tape().attention(["matmul"], **right | {name: value})
