import numpy as np
import pytest
from golden import main, same_text

from torchane.mil.check import check
from torchane.mil.evaluate import evaluate
from torchane.passes.decompose_arithmetic import decompose_arithmetic
from torchane.passes.fold_constants import fold_constants
from torchane.passes.lower_bools import lower_bools

#: Every pair of these: equal ones, neighbours, both signs, the smallest and the largest that still subtract.
POINTS = np.array([-30000, -1.001, -1, -(2.0**-24), 0, 2.0**-24, 2.0**-14, 0.5, 1, 1.001, 30000], np.float16)
X, Y = (grid.astype(np.float16) for grid in np.meshgrid(POINTS, POINTS))
PARAMS = "(tensor<fp16, [11, 11]> x, tensor<fp16, [11, 11]> y)"


def lowered(program):
    after = decompose_arithmetic(lower_bools(program))
    check(after)
    for op in after.ops:
        assert all(var.type.dtype.mil_name == "fp16" for var in op.outputs)
    return after


@pytest.mark.parametrize("kind", ["greater", "less", "greater_equal", "less_equal", "equal", "not_equal"])
def test_a_comparison_is_exact(kind):
    program = main(f"""{PARAMS} {{
        tensor<bool, [11, 11]> c = {kind}(x = x, y = y);
        tensor<fp16, [11, 11]> z = cast(x = c, dtype = string("fp16"));
    }} -> (z)""")
    given = {"x": X, "y": Y}
    assert np.array_equal(evaluate(lowered(program), given)["z"], evaluate(program, given)["z"])


@pytest.mark.parametrize("call", ["logical_and(x = c, y = d)", "logical_or(x = c, y = d)", "logical_xor(x = c, y = d)", "logical_not(x = d)"])
def test_logic_is_exact(call):
    program = main(f"""{PARAMS} {{
        tensor<bool, [11, 11]> c = greater(x = x, y = fp16(0));
        tensor<bool, [11, 11]> d = less(x = x, y = y);
        tensor<bool, [11, 11]> e = {call};
        tensor<fp16, [11, 11]> z = select(cond = e, a = x, b = y);
    }} -> (z)""")
    given = {"x": X, "y": Y}
    assert np.array_equal(evaluate(lowered(program), given)["z"], evaluate(program, given)["z"])


def test_the_gradient_of_relu():
    program = main("""(tensor<fp16, [2]> g, tensor<fp16, [2]> y) {
        tensor<bool, [2]> c = greater(x = y, y = fp16(0));
        tensor<fp16, [2]> z = select(cond = c, a = g, b = fp16(0));
    } -> (z)""")
    golden = """(tensor<fp16, [2]> g, tensor<fp16, [2]> y) {
        tensor<fp16, [2]> maximum = maximum(x = y, y = fp16(0));
        tensor<fp16, [2]> maximum_1 = maximum(x = maximum, y = fp16(0x1p-24));
        tensor<fp16, [2]> real_div = real_div(x = maximum, y = maximum_1);
        tensor<fp16, [2]> z = mul(x = g, y = real_div);
    } -> (z);"""
    assert same_text(lower_bools(program), golden)


def test_a_constant_mask_of_minus_infinity_is_added_as_a_finite_constant():
    program = main("""(tensor<fp16, [2, 2]> x) {
        tensor<fp16, [2, 2]> m = select(cond = tensor<bool, [2, 2]>([[true, false], [true, true]]), a = x, b = fp16(-inf));
        tensor<fp16, [2, 2]> z = softmax(x = m, axis = int32(-1));
    } -> (z)""")
    after = lower_bools(program)
    assert [op.kind.name for op in after.ops] == ["mul", "add", "softmax"]
    assert after.ops[1].args["y"].value.tolist() == [[0, -30000], [0, 0]]
    x = {"x": np.array([[3, 500], [-400, 1]])}
    assert np.array_equal(evaluate(program, x)["z"], evaluate(after, x)["z"])


def test_a_choice_between_constants_by_a_constant_is_one_constant():
    program = main("""(tensor<fp16, [2]> x) {
        tensor<fp16, [2]> m = select(cond = tensor<bool, [2]>([true, false]), a = fp16(2), b = fp16(3));
        tensor<fp16, [2]> z = mul(x = x, y = m);
    } -> (z)""")
    after = fold_constants(lower_bools(program))
    assert [op.kind.name for op in after.ops] == ["mul"]
    assert after.ops[0].args["y"].value.tolist() == [2, 3]


def test_sign_and_casts_to_bool():
    program = main(f"""{PARAMS} {{
        tensor<fp16, [11, 11]> s = sign(x = x);
        tensor<bool, [11, 11]> c = cast(x = y, dtype = string("bool"));
        tensor<fp16, [11, 11]> m = cast(x = c, dtype = string("fp16"));
    }} -> (s, m)""")
    given = {"x": X, "y": Y}
    old, new = evaluate(program, given), evaluate(lowered(program), given)
    assert all(np.array_equal(old[name], new[name]) for name in old)


def test_a_comparison_of_integers_stays_to_be_refused():
    program = main("""(tensor<int32, [2]> x) {
        tensor<bool, [2]> c = greater(x = x, y = int32(0));
    } -> (c)""")
    assert lower_bools(program) == program


def test_a_choice_that_broadcasts_keeps_its_shape():
    program = main("""(tensor<fp16, [2, 1]> x) {
        tensor<bool, [2, 1]> c = greater(x = x, y = fp16(0));
        tensor<fp16, [2, 3]> z = select(cond = c, a = x, b = tensor<fp16, [1, 3]>([[0, 0, 0]]));
    } -> (z)""")
    x = {"x": np.array([[-1], [1]])}
    assert np.array_equal(evaluate(lowered(program), x)["z"], evaluate(program, x)["z"])
