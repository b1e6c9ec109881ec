import numpy as np
import pytest
from golden import main, moves, same_text
from hypothesis import given
from hypothesis import strategies as st

from torchane.mil.evaluate import evaluate
from torchane.passes.decompose_reductions import RULES, decompose_reductions


@pytest.mark.parametrize("kind", sorted(RULES))
@pytest.mark.parametrize("arguments", ["", ", axes = tensor<int32, [1]>([1])", ", axes = tensor<int32, [2]>([0, -1])"])
@pytest.mark.parametrize("keep", ["false", "true"])
def test_every_reduction_keeps_its_numbers(kind, arguments, keep):
    axes = {"": (0, 1, 2), ", axes = tensor<int32, [1]>([1])": (1,)}.get(arguments, (0, 2))
    shape = [n if axis not in axes else 1 for axis, n in enumerate((2, 3, 4)) if keep == "true" or axis not in axes]
    program = main(f"(tensor<fp16, [2, 3, 4]> x) {{ tensor<fp16, {shape}> y = {kind}(x = x{arguments}, keep_dims = bool({keep})); }} -> (y)")
    after = decompose_reductions(program)
    assert after.ops[-1].kind.name not in RULES
    # 1/n as an fp16 constant
    assert moves(program, after, low=0.5) < (2**-11 if kind == "reduce_mean" else 1e-10)


@given(st.integers(1, 4096))
def test_a_mean_over_a_power_of_two_is_exact(n):
    n = 1 << n.bit_length() - 1
    program = main(f"(tensor<fp16, [2, {n}]> x) {{ tensor<fp16, [2]> y = reduce_mean(x = x, axes = tensor<int32, [1]>([1])); }} -> (y)")
    assert moves(program, decompose_reductions(program)) < 1e-12


def test_a_mean_is_a_sum_and_a_factor():
    program = main("""(tensor<fp16, [2, 3, 8]> x) {
        tensor<fp16, [2, 1, 1]> y = reduce_mean(x = x, axes = tensor<int32, [2]>([1, 2]), keep_dims = bool(true));
    } -> (y)""")
    golden = """(tensor<fp16, [2, 3, 8]> x) {
        tensor<fp16, [2, 1, 1]> reduce_sum = reduce_sum(x = x, axes = tensor<int32, [2]>([1, 2]), keep_dims = bool(true));
        tensor<fp16, [2, 1, 1]> y = mul(x = reduce_sum, y = fp16(0x1.554p-5));
    } -> (y);"""
    assert same_text(decompose_reductions(program), golden)


@pytest.mark.parametrize("level", [1e-3, 30.0])
@pytest.mark.parametrize(
    ("shape", "axes", "result"),
    [((20011,), (0,), ()), ((4, 3, 64, 64), (0, 1, 2, 3), ()), ((2, 16384, 3), (-2,), (2, 1, 3)), ((9, 5000), (1, 0), (1, 1))],
)
def test_a_mean_of_many_numbers_stays_in_fp16_where_their_sum_does_not(shape, axes, result, level):
    program = main(f"""(tensor<fp16, {list(shape)}> x) {{
        tensor<fp16, {list(result)}> y = reduce_mean(
            x = x, axes = tensor<int32, [{len(axes)}]>({list(axes)}), keep_dims = bool({str(len(result) == len(shape)).lower()}));
    }} -> (y)""")
    x = (level * np.random.default_rng(0).uniform(0.5, 1.5, shape)).astype(np.float16)
    (y,) = evaluate(decompose_reductions(program), {"x": x}).values()
    expected = np.mean(x, axes, np.float64).reshape(result)
    # a rounding of each number that is scaled down, of the sum and of 1 / n along each axis, of each product
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=4 * len(axes) * 2**-11)


def test_sums_and_maxima_stay():
    program = main("""(tensor<fp16, [2, 3]> x) {
        tensor<fp16, [3]> y = reduce_sum(x = x, axes = tensor<int32, [1]>([0]));
        tensor<fp16, [2]> z = reduce_max(x = x, axes = tensor<int32, [1]>([1]));
    } -> (y, z)""")
    assert decompose_reductions(program) == program
