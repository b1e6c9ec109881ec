"""Element-wise kernels against NumPy in float64: over every fp16 number where there is one operand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runs import halves, run, ulps

from torchane import native
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate

EVERY_NUMBER = np.arange(2**16, dtype=np.uint16).view(np.float16)
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 65504, -65504, 6e-8, -6e-8, 6.1e-5, np.inf, -np.inf, np.nan], np.float16)


def applied(kind: str, **args: object) -> tuple[np.ndarray, np.ndarray]:
    """What the twin and what the oracle make of every fp16 number."""
    b = Builder()
    x = b.input("x", (16, 4096))
    program = b.program(getattr(b, kind)(x=x, **args))
    numbers = EVERY_NUMBER.reshape(16, 4096)
    wanted = evaluate(program, {"x": numbers})[program.outputs[0].name]
    return run(program, numbers)[0], wanted


#: By the kernel's code, the op that it computes and its arguments.
UNARY: dict[str, tuple[str, dict]] = {
    "copy": ("pow", {"y": 1.0}), "cube": ("pow", {"y": 3.0}), "inverse": ("pow", {"y": -1.0}),
    "pow_minus_half": ("pow", {"y": -0.5}),
    **{kind: (kind, {}) for kind in ("abs", "exp", "sqrt", "tanh", "sigmoid", "silu", "relu", "square", "log", "erf")},
}  # fmt: skip


def differing(got: np.ndarray, wanted: np.ndarray) -> list[str]:
    """Patterns of the operand where two results over every number have other bits; a NaN is a NaN, 0 is not -0."""
    apart = (got.view(np.uint16) != wanted.view(np.uint16)) & ~(np.isnan(got) & np.isnan(wanted))
    return [f"{pattern:#06x}" for pattern in np.flatnonzero(apart)]


def test_every_kernel_of_one_operand_is_among_the_cases() -> None:
    assert sorted(UNARY) == sorted(native.UNARY)


@pytest.mark.parametrize("code", UNARY)
def test_every_number_has_the_bits_of_the_numpy_rule(isa: str, code: str) -> None:
    kind, args = UNARY[code]
    assert differing(*applied(kind, **args)) == []


@pytest.mark.parametrize("exponent", [0.5, 2.0, 1.5, -2.0, 0.0, 10.0])
def test_pow_with_another_constant_exponent_has_the_bits_of_the_numpy_rule(isa: str, exponent: float) -> None:
    assert differing(*applied("pow", y=exponent)) == []


@pytest.mark.parametrize("size", [1, 3, 7, 17, 1023])
@pytest.mark.parametrize("kind", ["exp", "tanh"])
def test_rows_that_end_within_a_vector_have_the_same_bits(isa: str, kind: str, size: int) -> None:
    b = Builder()
    program = b.program(getattr(b, kind)(x=b.input("x", (size,))))
    close = np.resize(np.array([0x1F79, 0x25CF, 0x8000, 0x1A00], np.uint16).view(np.float16), size)  # fp32 rounds these wrongly
    assert run(program, close)[0].tobytes() == evaluate(program, {"x": close})[program.outputs[0].name].tobytes()


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "real_div", "maximum", "minimum"])
def test_two_operands_are_rounded_as_numpy_rounds_them(isa: str, kind: str) -> None:
    """fp32 has more than twice the digits of fp16: rounding twice is rounding once."""
    b = Builder()
    x, y = b.input("x", (5, 1000)), b.input("y", (5, 1000))
    program = b.program(getattr(b, kind)(x=x, y=y))
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**16, (2, 5, 1000), dtype=np.uint16)
    left, right = bits.view(np.float16)
    left[0, :144], right[0, :144] = np.repeat(SPECIAL, 12), np.tile(SPECIAL, 12)
    wanted = evaluate(program, {"x": left, "y": right})[program.outputs[0].name]
    assert ulps(run(program, left, right)[0], wanted).max() == 0


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_operands_broadcast_as_in_numpy(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 17, 32, 64]), min_size=1, max_size=4), label="shape"))
    shapes = [
        tuple(size if data.draw(st.booleans()) else 1 for size in shape)[data.draw(st.integers(0, len(shape) - 1)) :] for _ in "xyz"
    ]
    b = Builder()
    x, y, z = (b.input(name, of) for name, of in zip("xyz", shapes))
    once = b.sub(x=x, y=y)
    program = b.program(b.real_div(x=z, y=b.add(x=once, y=2.0)), once)
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    arrays = [halves(rng, *of) for of in shapes]
    wanted = evaluate(program, dict(zip("xyz", arrays)))
    for got, var in zip(run(program, *arrays), program.outputs):
        assert ulps(got, wanted[var.name]).max() == 0


def test_pow_of_two_arrays(isa: str) -> None:
    b = Builder()
    program = b.program(b.pow(x=b.input("x", (3, 65)), y=b.input("y", (3, 65))))
    rng = np.random.default_rng(1)
    x, y = np.abs(halves(rng, 3, 65)), halves(rng, 3, 65, scale=3)
    wanted = evaluate(program, {"x": x, "y": y})[program.outputs[0].name]
    assert ulps(run(program, x, y)[0], wanted).max() == 0


def test_no_instruction_set_gives_other_bits_for_what_is_exact(isa: str) -> None:
    b = Builder()
    x = b.input("x", (7, 333))
    program = b.program(b.mul(x=b.add(x=x, y=0.1), y=b.sqrt(x=b.abs(x=x))))
    x = halves(np.random.default_rng(2), 7, 333)
    assert np.array_equal(run(program, x)[0], evaluate(program, {"x": x})[program.outputs[0].name])


@pytest.mark.parametrize("name", ["softmax"])
def test_instruction_sets_with_fused_products_give_the_same_bits(name: str) -> None:
    """avx2 and what is above it; base rounds the products in its polynomials."""
    fused = [isa for isa in native.isas() if isa != "base"]
    if len(fused) < 2:
        pytest.skip(f"needs a processor with two instruction sets of fused products, and this one has {len(fused)}")
    x = np.where(np.isfinite(EVERY_NUMBER), EVERY_NUMBER, np.float16(0)).reshape(256, 256)
    b = Builder()
    program = b.program(getattr(b, name)(x=b.input("x", x.shape)))
    before, results = native.get_isa(), set()
    for isa in fused:
        native.set_isa(isa)
        results.add(run(program, x)[0].tobytes())
    native.set_isa(before)
    assert len(results) == 1
