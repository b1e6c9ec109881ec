"""The engine's kernels against the NumPy rules, to the bit, on every instruction set and for any number of threads."""

import numpy as np
import pytest

from torchane import native
from torchane.mil import evaluate
from torchane.mil.build import Builder
from torchane.mil.engine import Settings
from torchane.mil.engine.softmax import reciprocal
from torchane.mil.types import FP16, TensorType
from torchane.runtime.twin import TwinDevice, load_program
from torchane.runtime.twin.engine import prepare

ISAS = [isa for isa in native.isas() if isa != "amx"]  # amx takes avx512's kernels here


@pytest.fixture(autouse=True)
def restored():
    isa, threads = native.get_isa(), native.get_threads()
    yield
    native.set_isa(isa)
    native.set_threads(threads)


def halves(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float16)


def patterns(seed, *shape):
    """Any bits but those of NaN, exponents spread evenly."""
    bits = np.random.default_rng(seed).integers(0, 1 << 16, shape).astype(np.uint16)
    return np.where(bits & 0x7FFF > 0x7C00, bits & 0x83FF, bits).astype(np.uint16).view(np.float16)


def compare(build, **inputs):
    """The twin's output of a program on each instruction set has the bits of the rules' output."""
    prepare()
    b = Builder()
    result = build(b, **{name: b.input(name, TensorType(FP16, x.shape)) for name, x in inputs.items()})
    program = b.program(result)
    want = evaluate(program, inputs, arithmetic="engine")[result.name]
    loaded, executor = load_program(program, "test", "engine"), native.Executor()
    for isa in ISAS:
        native.set_isa(isa)
        out = np.zeros(want.shape, np.float16)
        executor.run(loaded.tape, list(inputs.values()), [out])
        different = np.flatnonzero(out.view(np.uint16) != want.view(np.uint16))
        assert len(different) == 0, f"{isa}: {len(different)} differ, first {out.flat[different[0]]} for {want.flat[different[0]]}"
    return want


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (5, 3, 7), (8, 32, 32), (37, 130, 70), (3, 2100, 40)])
@pytest.mark.parametrize("transposed", [False, True])
def test_matmul(m, k, n, transposed):
    x, y = halves(0, *((k, m) if transposed else (m, k))), halves(1, *((n, k) if transposed else (k, n)), scale=0.05)
    compare(lambda b, x, y: b.matmul(x=x, y=y, transpose_x=transposed, transpose_y=transposed), x=x, y=y)


@pytest.mark.parametrize("exponent", [-10, -6, 0])
def test_matmul_of_any_bits_flushes_and_overflows_alike(exponent):
    x = patterns(0, 24, 70)
    y = np.ldexp(patterns(1, 70, 48).astype(np.float64), exponent).astype(np.float16)
    found = compare(lambda b, x, y: b.matmul(x=x, y=y), x=x, y=y)
    assert np.isinf(found).any()


def test_a_sum_that_left_the_range_in_one_slab_stays_an_infinity():
    x, y = np.zeros((4, 4200), np.float16), np.ones((4200, 33), np.float16)
    x[0, :4] = 16384, 16384, -16384, -16384
    x[1, 4000:4003] = -16384, -16384, 32752
    x[2, 2000:2200:100] = 16376, 16376
    x[3, :4096] = 7.99
    found = compare(lambda b, x, y: b.matmul(x=x, y=y), x=x, y=y)
    assert found[:, 0].tolist() == [np.inf, -np.inf, 32752, 32720]


@pytest.mark.parametrize("scale", [1.0, 1.999, 90.0])
def test_products_on_both_sides_of_a_half_are_rounded_as_the_rule_says(scale):
    """x = i / 256 + 1 and y = j 2^-10: halves of 2^-16 in plenty, of either sign; scale 90 makes them large."""
    x = ((np.arange(1, 257).reshape(8, 32) / 256 + 1) * np.where(np.arange(32) % 2, 1, -1) * scale).astype(np.float16)
    y = (np.arange(-512, 512).reshape(32, 32) * 2.0**-10).astype(np.float16)
    compare(lambda b, x, y: b.matmul(x=x, y=y), x=x, y=y)


@pytest.mark.parametrize("large", [9.0, 60.0, 180.0, 8000.0])
def test_small_large_and_overflowing_products_meet_along_k(large):
    """Stretches of k change from one way of adding to another, and back."""
    x, y = halves(0, 13, 700), halves(1, 700, 45)
    x[:, 130:140], y[130:140] = x[:, 130:140] * large, y[130:140] * 8
    x[3, 400:402] = large
    compare(lambda b, x, y: b.matmul(x=x, y=y), x=x, y=y)


def test_many_small_products():
    x, y = halves(0, 2, 3, 16, 40), halves(1, 2, 3, 24, 40)
    compare(lambda b, x, y: b.matmul(x=x, y=y, transpose_y=True), x=x, y=y)


def test_conv():
    w = halves(1, 40, 24, 1, 1)
    compare(lambda b, x: b.conv(x=x, weight=w), x=halves(0, 2, 24, 1, 64))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "real_div", "maximum", "minimum"])
def test_binary_ops_on_any_bits(name):
    compare(lambda b, x, y: getattr(b, name)(x=x, y=y), x=patterns(0, 64, 1024), y=patterns(1, 64, 1024))
    compare(lambda b, x, y: getattr(b, name)(x=x, y=y), x=halves(0, 64, 96), y=halves(1, 64, 1))
    compare(lambda b, x, y: getattr(b, name)(x=x, y=y), x=halves(0, 1), y=halves(1, 64, 33))


EVERY_NUMBER = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FUNCTIONS = [code for code in native.UNARY if code not in ("copy", "cube", "inverse", "pow_minus_half")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_every_number(name):
    """What is NaN elsewhere is a number here."""
    compare(lambda b, x: getattr(b, name)(x=x), x=EVERY_NUMBER)


@pytest.mark.parametrize("exponent", [-1.0, -0.5, 0.5, 1.0, 2.0, 3.0, 0.7])
def test_powers_of_every_number(exponent):
    compare(lambda b, x: b.pow(x=x, y=np.float16(exponent)), x=EVERY_NUMBER)


@pytest.mark.parametrize("length", [2, 31, 32, 64, 100, 256])
def test_softmax_along_rows(length):
    compare(lambda b, x: b.softmax(x=x), x=halves(0, 50, length, scale=3))


def test_softmax_down_columns():
    compare(lambda b, x: b.softmax(x=x, axis=1), x=halves(0, 2, 70, 90, scale=3))


@pytest.mark.parametrize("name", ["reduce_sum", "reduce_mean", "reduce_max", "reduce_min"])
@pytest.mark.parametrize("axes", [(-1,), (0,), (1,), (0, 2)])
def test_reductions(name, axes):
    compare(lambda b, x: getattr(b, name)(x=x, axes=axes, keep_dims=True), x=halves(0, 9, 40, 300, scale=20))


def test_chains_round_after_each_op():
    def build(b, x):
        square = b.reduce_sum(x=b.mul(x=x, y=x), axes=(-1,), keep_dims=True)
        norm = b.pow(x=b.add(x=b.mul(x=square, y=np.float16(1 / 64)), y=np.float16(1e-5)), y=np.float16(-0.5))
        y = b.mul(x=x, y=norm)
        return b.mul(x=y, y=b.sigmoid(x=y))

    compare(build, x=halves(0, 128, 64))


def test_any_number_of_threads_gives_the_same_bits():
    prepare()
    b = Builder()
    x, y = b.input("x", TensorType(FP16, (200, 300))), b.input("y", TensorType(FP16, (300, 256)))
    loaded = load_program(b.program(b.softmax(x=b.matmul(x=x, y=y))), "test", "engine")
    inputs, outs = [halves(0, 200, 300), halves(1, 300, 256, scale=0.1)], []
    for threads in (1, 2, 5):
        native.set_threads(threads)
        outs.append(np.zeros((200, 256), np.float16))
        native.Executor().run(loaded.tape, inputs, [outs[-1]])
    assert all((out.view(np.uint16) == outs[0].view(np.uint16)).all() for out in outs)


def test_the_reciprocals_of_a_softmax_are_those_of_the_rule():
    sums = np.arange(1, 2, 1 / 1024)
    x = np.log(np.stack([np.ones(1024), sums - 1 + 1e-9], axis=1)).astype(np.float16)
    found = compare(lambda b, x: b.softmax(x=x), x=x)
    assert np.isin(found[:, 0].astype(np.float64), reciprocal(sums, Settings())).mean() > 0.99


def test_a_captured_attention_runs_on_the_twin(shared_data):
    """768 channels, 12 heads, 64 tokens: a real engine's outputs, every one, through MIL text and weight files."""
    folder = shared_data / "golden" / "espresso-full_fused"
    text = (folder / "full_fused.mil").read_text(encoding="utf-8")
    blobs = {f"@model_path/weights/{name}.bin": (folder / f"full_fused_{name}.bin").read_bytes() for name in ("wq", "wk", "wv", "wo", "mask")}
    device = TwinDevice(arithmetic="engine")
    program = device.load(text, blobs)
    x, out = device.allocate(program.inputs[0]), device.allocate(program.outputs[0])
    x.array[:] = np.fromfile(folder / "full_fused_input_seq64_f32le.bin", "<f4").reshape(x.array.shape)
    device.run(program, [x], [out])
    want = np.fromfile(folder / "full_fused_out_seq64_f32le.bin", "<f4").reshape(out.array.shape).astype(np.float16)
    assert int((out.array == want).sum()) == 49152
