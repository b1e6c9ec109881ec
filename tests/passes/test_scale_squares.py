import numpy as np
import pytest
from golden import main, moves, same_text
from hypothesis import given
from hypothesis import strategies as st

from torchane.mil.evaluate import evaluate
from torchane.passes.decompose_reductions import decompose_reductions
from torchane.passes.drop_dead import drop_dead
from torchane.passes.scale_squares import scale_squares


def mean_of_squares(n: int, square: str = "mul(x = x, y = x)"):
    return main(f"""(tensor<fp16, [2, {n}]> x) {{
        tensor<fp16, [2, {n}]> s = {square};
        tensor<fp16, [2, 1]> m = reduce_mean(x = s, axes = tensor<int32, [1]>([-1]), keep_dims = bool(true));
    }} -> (m)""")


def test_a_long_row_is_scaled_before_it_is_squared():
    golden = """(tensor<fp16, [2, 256]> x) {
        tensor<fp16, [2, 256]> mul = mul(x = x, y = fp16(0.125));
        tensor<fp16, [2, 256]> mul_1 = mul(x = mul, y = mul);
        tensor<fp16, [2, 1]> reduce_sum = reduce_sum(x = mul_1, axes = tensor<int32, [1]>([-1]), keep_dims = bool(true));
        tensor<fp16, [2, 1]> m = mul(x = reduce_sum, y = fp16(0.25));
    } -> (m);"""
    assert same_text(drop_dead(scale_squares(mean_of_squares(256))), golden)


@pytest.mark.parametrize("square", ["mul(x = x, y = x)", "square(x = x)", "pow(x = x, y = fp16(2))"])
@pytest.mark.parametrize("n", [5, 65, 100, 768, 4096])
def test_every_spelling_of_a_square_keeps_its_numbers(n, square):
    program = mean_of_squares(n, square)
    # 4^k / n as an fp16 constant
    assert moves(program, scale_squares(program)) < 2**-11


@pytest.mark.parametrize("n", [128, 288, 768, 2048])
@pytest.mark.parametrize(("rms", "bar"), [(0.02, 0.02), (0.1, 4 * 2**-11), (1.0, 4 * 2**-11), (50.0, 4 * 2**-11)])
def test_the_mean_is_right_in_fp16_from_a_fresh_model_to_a_trained_one(n, rms, bar):
    program = mean_of_squares(n)
    x = {"x": np.random.default_rng(0).normal(0, rms, (2, n)).astype(np.float16)}
    wanted = evaluate(program, x, arithmetic="ideal")["m"]
    found = evaluate(scale_squares(program), x)["m"]
    # two roundings and a constant, and at 0.02 the noise of subnormal squares
    assert np.abs(found / wanted - 1).max() < bar
    with np.errstate(over="ignore"):
        plain = evaluate(decompose_reductions(program), x)["m"]
    assert np.isfinite(plain).all() == (n * rms**2 < 60000)


@given(st.integers(5, 8192))
def test_the_sum_holds_to_a_root_mean_square_of_127(n):
    factor = next(op.args["y"].value for op in scale_squares(mean_of_squares(n)).ops if op.output.name == "mul")
    assert n * (127 * float(factor)) ** 2 < 65504


def test_a_short_row_and_a_mean_of_something_else_stay():
    short = mean_of_squares(4)
    assert scale_squares(short) == short
    other = main("""(tensor<fp16, [2, 256]> x, tensor<fp16, [2, 256]> w) {
        tensor<fp16, [2, 256]> s = mul(x = x, y = w);
        tensor<fp16, [2, 1]> m = reduce_mean(x = s, axes = tensor<int32, [1]>([-1]), keep_dims = bool(true));
    } -> (m)""")
    assert scale_squares(other) == other


def test_a_square_that_is_an_output_too_stays_beside_the_scaled_one():
    program = mean_of_squares(256)
    both = program.with_(outputs=(*program.outputs, program.ops[0].output))
    after = scale_squares(both)
    assert [op.kind.name for op in after.ops] == ["mul", "mul", "mul", "reduce_sum", "mul"]
    assert moves(both, after) < 1e-12
