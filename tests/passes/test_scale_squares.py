import numpy as np
import pytest
from golden import main, moves, same_text
from hypothesis import given
from hypothesis import strategies as st

from torchane import chips, passes
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.passes.decompose_norms import decompose_norms
from torchane.passes.drop_dead import drop_dead
from torchane.passes.scale_squares import scale_squares

RMS = [1e-5, 1e-4, 1e-3, 0.02, 1.0, 50.0, 300.0, 4000.0, 20000.0]


def norm(n: int, square: str = "mul(x = x, y = x)", root: str = "rsqrt(x = v, epsilon = fp32(0))", mean: str = "reduce_mean", eps: float = 1e-5):
    return main(f"""(tensor<fp16, [2, {n}]> x) {{
        tensor<fp16, [2, {n}]> s = {square};
        tensor<fp16, [2, 1]> m = {mean}(x = s, axes = tensor<int32, [1]>([-1]), keep_dims = bool(true));
        tensor<fp16, [2, 1]> v = add(x = m, y = fp16({eps}));
        tensor<fp16, [2, 1]> r = {root};
    }} -> (r)""")


def layer_norm(n: int, eps: float = 1e-5):
    return main(f"""(tensor<fp16, [2, {n}]> x) {{
        tensor<fp16, [2, {n}]> y = layer_norm(x = x, axes = tensor<int32, [1]>([-1]), epsilon = fp16({eps}));
    }} -> (y)""")


def test_a_row_is_divided_by_its_size_before_it_is_squared():
    golden = """(tensor<fp16, [2, 256]> x) {
        tensor<fp16, [2, 256]> mul = mul(x = x, y = fp16(0x1p-9));
        tensor<fp16, [2, 256]> mul_1 = mul(x = x, y = fp16(-0x1p-9));
        tensor<fp16, [2, 256]> maximum = maximum(x = mul, y = mul_1);
        tensor<fp16, [2, 1]> reduce_sum = reduce_sum(x = maximum, axes = tensor<int32, [1]>([1]), keep_dims = bool(true));
        tensor<fp16, [2, 1]> maximum_1 = maximum(x = reduce_sum, y = fp16(0x1p-14));
        tensor<fp16, [2, 1]> real_div = real_div(x = fp16(0.125), y = maximum_1);
        tensor<fp16, [2, 256]> mul_2 = mul(x = x, y = real_div);
        tensor<fp16, [2, 256]> mul_3 = mul(x = mul_2, y = mul_2);
        tensor<fp16, [2, 1]> reduce_sum_1 = reduce_sum(x = mul_3, axes = tensor<int32, [1]>([1]), keep_dims = bool(true));
        tensor<fp16, [2, 1]> mul_4 = mul(x = real_div, y = fp16(16));
        tensor<fp16, [2, 1]> mul_5 = mul(x = mul_4, y = fp16(0x1p-8));
        tensor<fp16, [2, 1]> mul_6 = mul(x = mul_5, y = mul_5);
        tensor<fp16, [2, 1]> add = add(x = reduce_sum_1, y = mul_6);
        tensor<fp16, [2, 1]> rsqrt = rsqrt(x = add, epsilon = fp16(0));
        tensor<fp16, [2, 1]> r = mul(x = mul_4, y = rsqrt);
    } -> (r);"""
    assert same_text(drop_dead(scale_squares(norm(256, eps=2.0**-16))), golden)


@pytest.mark.parametrize("square", ["mul(x = x, y = x)", "square(x = x)", "pow(x = x, y = fp16(2))"])
@pytest.mark.parametrize("root", ["rsqrt(x = v, epsilon = fp32(1e-6))", "pow(x = v, y = fp16(-0.5))", "sqrt(x = v)", "pow(x = v, y = fp16(0.5))"])
@pytest.mark.parametrize("n", [1, 5, 100, 4096])
def test_every_spelling_keeps_its_numbers(n, square, root):
    program = norm(n, square, root)
    after = drop_dead(scale_squares(program))
    assert len(after.ops) > len(program.ops)
    # sqrt(n) and sqrt(eps) as fp16 constants
    assert moves(program, after) < 2 * 2**-11


def test_a_plain_sum_of_squares_is_scaled_too():
    program = norm(64, mean="reduce_sum", root="sqrt(x = v)")
    assert moves(program, scale_squares(program)) < 2 * 2**-11


@pytest.mark.parametrize("n", [2, 32, 288, 2048, 8192])
@pytest.mark.parametrize("rms", RMS)
@pytest.mark.parametrize("build", [norm, layer_norm])
def test_a_norm_is_right_in_fp16_over_its_whole_range(build, n, rms):
    program = build(n)
    x = {"x": np.clip(np.random.default_rng(0).normal(0, rms, (2, n)), -60000, 60000).astype(np.float16)}
    (wanted,) = evaluate(program, x, arithmetic="ideal").values()
    lowered = passes.lower(program, chips.load(), {})
    port = lowered.program.inputs[0].name
    (found,) = evaluate(lowered.program, {port: lowered.ports["x"].stored(x["x"])}).values()
    found = lowered.ports[program.outputs[0].name].logical_of(found)
    # the roundings of two sums, of a dozen products, and of a reciprocal root that is subnormal from 16384 on
    bar = (4 if rms < 16000 else 8) * 2**-11
    # rows of 2 and rows that are nearly their mean lose digits in x - mean, before any square
    scale = np.abs(wanted).max() if build is layer_norm else np.abs(wanted)
    assert (np.abs(found - wanted) / scale).max() < (bar if n > 2 else 8 * bar)


@pytest.mark.parametrize("row", [np.zeros(64), np.full(64, 60000.0), np.eye(64)[0] * 60000, np.eye(64)[0] * 6e-8, np.full(64, 6e-8)])
def test_the_edges_of_fp16_give_finite_numbers(row):
    program = norm(64, eps=1e-5)
    x = {"x": np.stack([row, -row]).astype(np.float16)}
    wanted = evaluate(program, x, arithmetic="ideal")["r"]
    with np.errstate(all="raise", under="ignore"):
        found = evaluate(drop_dead(scale_squares(program)), x)["r"]
    assert np.abs(found / wanted - 1).max() < 2**-8  # r of 60000 is a subnormal of 9 bits


@given(st.integers(1, 2**17), st.sampled_from([2.0**-24, 1.0, 60000.0]), st.integers(0, 3))
def test_no_sum_of_squares_overflows(n, size, kind):
    """A row all alike, one number among zeros, a large one among small ones, noise. One number alone in a row
    longer than 2^14 is the documented exception."""
    n = min(n, 2**14) if kind == 1 or (kind == 2 and size > 1) else n
    row = [np.full(n, size), np.eye(1, n)[0] * size, np.full(n, 2.0**-20), np.random.default_rng(n).normal(0, 1, n) * min(size, 10000)][kind]
    row[0] = size
    b = Builder()
    x = b.input("x", (1, n))
    mean = b.reduce_mean(x=b.mul(x=x, y=x), axes=(1,), keep_dims=True)
    program = drop_dead(scale_squares(b.program(b.rsqrt(x=mean, epsilon=1e-5))))
    sums = [op.output for op in program.ops if op.kind.name == "reduce_sum"]
    values = evaluate(program.with_(outputs=(*program.outputs, *sums)), {"x": row[None].astype(np.float16)})
    assert max(values[var.name].max() for var in sums) <= 32768
    assert np.isfinite(values[program.outputs[0].name]).all()


def test_a_mean_beyond_what_a_sum_holds():
    program = decompose_norms(layer_norm(512))
    x = {"x": (np.random.default_rng(0).normal(0, 300, (2, 512)) + 6000).astype(np.float16)}
    wanted = evaluate(program, x, arithmetic="ideal")["y"]
    found = evaluate(scale_squares(program), x)["y"]
    # the mean, 20 deviations, is rounded to fp16: half an ulp of it is 2 of 300
    assert np.abs(found - wanted).max() < 0.02


def test_what_is_no_norm_stays():
    product = main("""(tensor<fp16, [2, 256]> x, tensor<fp16, [2, 256]> w) {
        tensor<fp16, [2, 256]> s = mul(x = x, y = w);
        tensor<fp16, [2, 1]> m = reduce_mean(x = s, axes = tensor<int32, [1]>([-1]), keep_dims = bool(true));
        tensor<fp16, [2, 1]> r = rsqrt(x = m, epsilon = fp16(0));
    } -> (r)""")
    assert scale_squares(product) == product
    logarithm = norm(64, root="log(x = v, epsilon = fp16(0))")
    assert scale_squares(logarithm) == logarithm


def test_a_mean_of_squares_that_is_an_output_stays_beside_the_scaled_root():
    program = norm(256)
    both = program.with_(outputs=(*program.outputs, program.ops[1].output))
    after = drop_dead(scale_squares(both))
    assert "reduce_mean" in [op.kind.name for op in after.ops]
    assert moves(both, after) < 2 * 2**-11
