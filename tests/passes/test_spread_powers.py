import numpy as np
from golden import main, moves, same_text
from hypothesis import given, settings
from hypothesis import strategies as st

from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.passes.drop_dead import drop_dead
from torchane.passes.spread_powers import spread_powers


def test_the_gradient_of_a_reciprocal_root_stays_in_range():
    """The whole of it as autograd writes it, at the small activations of a fresh model, r = 316."""
    n = 64
    program = main(f"""(tensor<fp16, [1, {n}]> x, tensor<fp16, [1, 1]> a, tensor<fp16, [1, 1]> r) {{
        tensor<fp16, [1, 1]> half = mul(x = a, y = fp16(-0.5));
        tensor<fp16, [1, 1]> r2 = mul(x = r, y = r);
        tensor<fp16, [1, 1]> r3 = mul(x = r2, y = r);
        tensor<fp16, [1, 1]> q = mul(x = half, y = r3);
        tensor<fp16, [1, 1]> m = real_div(x = q, y = fp16({n}));
        tensor<fp16, [1, {n}]> x2 = mul(x = x, y = fp16(2));
        tensor<fp16, [1, {n}]> y = mul(x = m, y = x2);
    }} -> (y)""")
    x = {"x": np.linspace(-0.002, 0.002, n).reshape(1, n), "a": np.full((1, 1), 0.01), "r": np.full((1, 1), 316.0)}
    after = drop_dead(spread_powers(program))
    wanted = evaluate(program, x, arithmetic="ideal")["y"]
    with np.errstate(over="ignore"):
        assert not np.isfinite(evaluate(program, x)["y"]).all()
    found = evaluate(after, x)["y"]
    # inputs, five products and the result are rounded
    assert np.abs(found - wanted).max() <= 8 * 2**-11 * np.abs(wanted).max()
    assert moves(program, after) < 1e-12


def test_a_power_is_spread_over_its_product_and_one_goes_to_the_full_factor():
    program = main("""(tensor<fp16, [2, 4]> x, tensor<fp16, [2, 1]> a, tensor<fp16, [2, 1]> r) {
        tensor<fp16, [2, 1]> p = pow(x = r, y = fp16(3));
        tensor<fp16, [2, 1]> q = mul(x = a, y = p);
        tensor<fp16, [2, 1]> h = mul(x = q, y = fp16(-0.5));
        tensor<fp16, [2, 4]> y = mul(x = h, y = x);
    } -> (y)""")
    golden = """(tensor<fp16, [2, 4]> x, tensor<fp16, [2, 1]> a, tensor<fp16, [2, 1]> r) {
        tensor<fp16, [2, 4]> mul = mul(x = x, y = r);
        tensor<fp16, [2, 1]> mul_1 = mul(x = a, y = fp16(-0.5));
        tensor<fp16, [2, 1]> mul_2 = mul(x = mul_1, y = r);
        tensor<fp16, [2, 1]> mul_3 = mul(x = mul_2, y = r);
        tensor<fp16, [2, 4]> y = mul(x = mul_3, y = mul);
    } -> (y);"""
    assert same_text(drop_dead(spread_powers(program)), golden)


def test_the_full_factor_is_the_one_that_was_normalised():
    program = main("""(tensor<fp16, [2, 4]> x, tensor<fp16, [2, 4]> g, tensor<fp16, [2, 1]> r) {
        tensor<fp16, [2, 4]> hat = mul(x = x, y = r);
        tensor<fp16, [2, 1]> p = pow(x = r, y = fp16(2));
        tensor<fp16, [2, 4]> q = mul(x = x, y = p);
        tensor<fp16, [2, 4]> y = mul(x = q, y = g);
    } -> (hat, y)""")
    after = drop_dead(spread_powers(program))
    first = next(op for op in after.ops if op.output.name == "mul")
    assert [var.name for var in first.inputs] == ["x", "r"]
    assert moves(program, after) < 1e-12


def test_a_square_alone_becomes_a_product():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = pow(x = x, y = fp16(2)); } -> (y)")
    assert same_text(spread_powers(program), "(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = mul(x = x, y = x); } -> (y);")


def test_products_without_powers_and_other_powers_stay():
    program = main("""(tensor<fp16, [2]> x, tensor<fp16, [2]> w) {
        tensor<fp16, [2]> a = mul(x = x, y = w);
        tensor<fp16, [2]> b = mul(x = a, y = fp16(0.5));
        tensor<fp16, [2]> s = mul(x = x, y = x);
        tensor<fp16, [2]> p = pow(x = s, y = fp16(-0.5));
        tensor<fp16, [2]> y = add(x = b, y = p);
    } -> (y)""")
    assert spread_powers(program) == program


def test_constants_too_small_for_fp16_stay_in_steps():
    program = main("""(tensor<fp16, [2]> x) {
        tensor<fp16, [2]> s = mul(x = x, y = x);
        tensor<fp16, [2]> c = mul(x = s, y = x);
        tensor<fp16, [2]> a = mul(x = c, y = fp16(0x1p-14));
        tensor<fp16, [2]> y = mul(x = a, y = fp16(0x1p-14));
    } -> (y)""")
    assert spread_powers(program) == program


def test_a_factor_that_others_read_is_not_taken_apart():
    program = main("""(tensor<fp16, [2]> x, tensor<fp16, [2]> w) {
        tensor<fp16, [2]> s = pow(x = x, y = fp16(2));
        tensor<fp16, [2]> a = mul(x = s, y = w);
        tensor<fp16, [2]> b = exp(x = a);
        tensor<fp16, [2]> y = mul(x = a, y = b);
    } -> (y, s)""")
    after = drop_dead(spread_powers(program))
    assert moves(program, after) < 1e-12
    assert [op.kind.name for op in after.ops] == ["mul", "mul", "exp", "mul"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_tree_of_products_keeps_its_numbers(data):
    b = Builder()
    values = [b.input("x", (2, 3)), b.input("r", (2, 1)), b.input("c", (3,)), b.input("s", (1, 1))]
    for _ in range(data.draw(st.integers(1, 9))):
        x, y = data.draw(st.sampled_from(values)), data.draw(st.sampled_from(values))
        made = {
            "mul": lambda x=x, y=y: b.mul(x=x, y=y),
            "half": lambda x=x: b.mul(x=x, y=0.5),
            "div": lambda x=x: b.real_div(x=x, y=-4.0),
            "pow": lambda x=x: b.pow(x=x, y=float(data.draw(st.integers(2, 4)))),
            "add": lambda x=x, y=y: b.add(x=x, y=y),
            "weights": lambda x=x: b.mul(x=x, y=np.array([1, 2, -1], np.float16)),
        }[data.draw(st.sampled_from(["mul", "mul", "half", "div", "pow", "add", "weights"]))]()
        values.append(made)
    program = b.program(values[-1]) if len(values) > 4 else b.program(b.mul(x=values[0], y=values[1]))
    assert moves(program, drop_dead(spread_powers(program)), low=0.5, high=1.2) < 1e-9


def test_the_sum_of_a_norms_gradient_is_taken_of_the_normalised_row():
    """In fp16 sum(g * x) is inf here: x is 6000 in 64 entries."""
    program = main("""(tensor<fp16, [2, 64]> g, tensor<fp16, [2, 64]> x, tensor<fp16, [2, 1]> r) {
        tensor<fp16, [2, 64]> gx = mul(x = g, y = x);
        tensor<fp16, [2, 1]> a = reduce_sum(x = gx, axes = tensor<int32, [1]>([-1]), keep_dims = bool(true));
        tensor<fp16, [2, 1]> cube = pow(x = r, y = fp16(3));
        tensor<fp16, [2, 1]> q = mul(x = a, y = cube);
        tensor<fp16, [2, 1]> mean = real_div(x = q, y = fp16(64));
        tensor<fp16, [2, 64]> y = mul(x = mean, y = x);
    } -> (y)""")
    after = drop_dead(spread_powers(program))
    assert moves(program, after) < 1e-10
    x = np.full((2, 64), 6000.0, np.float16)
    given = {"g": np.ones_like(x), "x": x, "r": np.full((2, 1), 2.0**-12, np.float16)}
    wanted = evaluate(program, given, arithmetic="ideal")["y"]
    assert np.abs(evaluate(after, given)["y"] / wanted - 1).max() < 4 * 2**-11
