"""Range control as a rewriting. The oracle is the program without it, in exact numbers, under random powers of two."""

import llama_layer
import numpy as np
import pytest
from golden import main, same_text

from torchane import chips, passes
from torchane.abi.ranges import UNSCALED, Form, Inputs
from torchane.mil.constants import inline_constants
from torchane.mil.evaluate import evaluate
from torchane.passes.control_ranges import control_ranges

V0, I0, I1 = Form.var("v0"), Form.var("i0"), Form.var("i1")


def runs_alike(program, unscaled=(), seed=0, chip=None):
    """Inputs and variables under powers of two drawn at random, multipliers as the forms say: what leaves is the old
    program's result times the power that its form says, and rows hold the largest magnitudes. True if there were any."""
    controlled, ranges = control_ranges(program, chip, Inputs(unscaled=frozenset(unscaled)))
    rng = np.random.default_rng(seed)
    inputs = {var.name: rng.uniform(-2, 2, var.shape) for var in program.inputs}
    powers = {f"i{i}": int(rng.integers(-6, 7)) for i, var in enumerate(program.inputs) if var.name not in unscaled}
    powers |= {name: int(rng.integers(-6, 7)) for name in ranges.variables}
    stored = {var.name: inputs[var.name] * 2.0 ** powers.get(f"i{i}", 0) for i, var in enumerate(program.inputs)}
    port = controlled.inputs[-1]
    if ranges.multipliers:
        factors = np.array([2.0 ** form.at(powers) for form in ranges.multipliers])
        stored[port.name] = np.broadcast_to(factors[None, :, None, None], port.shape)
    old = list(evaluate(program, inputs, arithmetic="ideal").values())
    new = list(evaluate(controlled, stored, arithmetic="ideal").values())
    for before, after, form in zip(old, new, ranges.outputs):
        np.testing.assert_allclose(after, before * 2.0 ** form.at(powers), rtol=1e-9, atol=1e-9 * np.abs(after).max())
    assert len(new) == len(old) + (ranges.rows > 0)
    return bool(ranges.multipliers)


def test_the_smaller_operand_of_a_product_is_multiplied_and_what_leaves_is_not_measured():
    program = main("""(tensor<fp16, [1, 1, 64, 32]> w, tensor<fp16, [1, 1, 32, 96]> x) {
        tensor<fp16, [1, 1, 64, 96]> y = matmul(x = w, y = x);
    } -> (y)""")
    golden = """(tensor<fp16, [1, 1, 64, 32]> w, tensor<fp16, [1, 1, 32, 96]> x, tensor<fp16, [1, 1, 1, 32]> range_multipliers) {
        tensor<fp16, [1, 1, 1, 1]> multiplier_0 = slice_by_size(x = range_multipliers,
            begin = tensor<int32, [4]>([0, 0, 0, 0]), size = tensor<int32, [4]>([1, 1, 1, 1]));
        tensor<fp16, [1, 1, 64, 32]> w_scaled = mul(x = w, y = multiplier_0);
        tensor<fp16, [1, 1, 64, 96]> y = matmul(x = w_scaled, y = x);
    } -> (y)"""
    controlled, ranges = control_ranges(program)
    assert same_text(controlled, golden)
    assert ranges.multipliers == (V0 - I0 - I1,) and ranges.outputs == (V0,) and ranges.rows == 0


def test_a_constant_that_leaves_is_a_true_number():
    program = main(f"""(tensor<fp16, [1, 1, 32, 32]> w, tensor<fp16, [1, 1, 32, 64]> x) {{
        tensor<fp16, [1, 1, 32, 64]> y = matmul(x = w, y = x);
        tensor<fp16, [1, 1, 1, 32]> z = identity(x = tensor<fp16, [1, 1, 1, 32]>([[[[{", ".join(["2.0"] * 32)}]]]]));
    }} -> (y, z)""")
    assert runs_alike(program)
    assert control_ranges(program)[1].outputs == (V0, UNSCALED)


def test_a_product_that_stays_inside_is_measured_through_the_statistics_port_and_brought_down_for_elements():
    program = main("""(tensor<fp16, [1, 1, 32, 32]> w, tensor<fp16, [1, 1, 32, 64]> x) {
        tensor<fp16, [1, 1, 32, 64]> h = matmul(x = w, y = x);
        tensor<fp16, [1, 1, 32, 64]> y = mul(x = h, y = x);
    } -> (y)""")
    controlled, ranges = control_ranges(program)
    golden = """(tensor<fp16, [1, 1, 32, 32]> w, tensor<fp16, [1, 1, 32, 64]> x, tensor<fp16, [1, 2, 1, 32]> range_multipliers) {
        tensor<fp16, [1, 1, 1, 1]> multiplier_0 = slice_by_size(x = range_multipliers,
            begin = tensor<int32, [4]>([0, 0, 0, 0]), size = tensor<int32, [4]>([1, 1, 1, 1]));
        tensor<fp16, [1, 1, 32, 32]> w_scaled = mul(x = w, y = multiplier_0);
        tensor<fp16, [1, 1, 32, 64]> h = matmul(x = w_scaled, y = x);
        tensor<fp16, [1, 1, 1, 1]> multiplier_1 = slice_by_size(x = range_multipliers,
            begin = tensor<int32, [4]>([0, 1, 0, 0]), size = tensor<int32, [4]>([1, 1, 1, 1]));
        tensor<fp16, [1, 1, 32, 64]> h_scaled = mul(x = h, y = multiplier_1);
        tensor<fp16, [1, 1, 32, 64]> y = mul(x = h_scaled, y = x);
        tensor<fp16, [1, 1, 32, 64]> abs = abs(x = h);
        tensor<fp16, [1, 1, 32, 1]> reduce_max = reduce_max(x = abs, axes = tensor<int32, [1]>([-1]), keep_dims = bool(true));
        tensor<fp16, [1, 1, 1, 32]> reshape = reshape(x = reduce_max, shape = tensor<int32, [4]>([1, 1, 1, 32]));
        tensor<fp16, [1, 1, 1, 1]> reduce_max_1 = reduce_max(x = reshape, axes = tensor<int32, [1]>([-1]), keep_dims = bool(true));
        tensor<fp16, [1, 1, 1, 1]> mul = mul(x = reduce_max_1, y = fp16(-1.0));
        tensor<fp16, [1, 1, 1, 1]> maximum = maximum(x = mul, y = fp16(-65504.0));
        tensor<fp16, [1, 1, 1, 32]> largest_0 = mul(x = maximum, y = tensor<fp16, [1, 1, 1, 32]>([ONES]));
    } -> (y, largest_0)""".replace("ONES", ", ".join(["-1.0"] * 32))
    assert same_text(control_ranges(program, chips.load("m4"))[0], golden)
    assert [(m.place, m.index) for m in ranges.measures if m.place != "input"] == [("row", 0), ("output", 0)]
    assert "abs" not in {op.kind.name for op in controlled.ops}  # portable does not take it
    assert runs_alike(program)


def test_a_softmax_reads_true_numbers():
    program = main("""(tensor<fp16, [1, 4, 32, 32]> q, tensor<fp16, [1, 4, 32, 32]> k) {
        tensor<fp16, [1, 4, 32, 32]> s = matmul(x = q, y = k);
        tensor<fp16, [1, 4, 32, 32]> p = softmax(x = s, axis = int32(-1));
    } -> (p)""")
    controlled, ranges = control_ranges(program)
    assert ranges.outputs == (UNSCALED,)
    assert ranges.multipliers == (V0 - I0 - I1, -V0)
    assert runs_alike(program)


def test_two_products_that_only_a_sum_reads_share_its_power_and_cost_no_multiplier_more():
    program = main("""(tensor<fp16, [1, 1, 32, 32]> a, tensor<fp16, [1, 1, 32, 64]> x, tensor<fp16, [1, 1, 32, 64]> z) {
        tensor<fp16, [1, 1, 32, 64]> g = matmul(x = a, y = x);
        tensor<fp16, [1, 1, 32, 64]> h = matmul(x = a, y = z);
        tensor<fp16, [1, 1, 32, 64]> y = add(x = g, y = h);
    } -> (y)""")
    _, ranges = control_ranges(program)
    assert len(ranges.multipliers) == 2 and len(ranges.variables) == 1
    assert runs_alike(program)


def test_a_product_with_another_reader_keeps_its_own_power():
    program = main("""(tensor<fp16, [1, 1, 32, 32]> a, tensor<fp16, [1, 1, 32, 64]> x, tensor<fp16, [1, 1, 32, 64]> z) {
        tensor<fp16, [1, 1, 32, 64]> g = matmul(x = a, y = x);
        tensor<fp16, [1, 1, 32, 64]> h = matmul(x = a, y = z);
        tensor<fp16, [1, 1, 32, 64]> y = add(x = g, y = h);
        tensor<fp16, [1, 1, 32, 64]> u = mul(x = g, y = x);
        tensor<fp16, [1, 1, 32, 64]> v = mul(x = h, y = x);
    } -> (y, u, v)""")
    _, ranges = control_ranges(program)
    assert len(ranges.multipliers) == 5 and ranges.outputs[1] - I1 != ranges.outputs[2] - I1
    assert runs_alike(program)


def test_what_is_moved_for_a_sum_is_moved_through_its_small_factor():
    program = main("""(tensor<fp16, [1, 64, 1, 64]> x, tensor<fp16, [1, 64, 1, 64]> y, tensor<fp16, [1, 1, 1, 64]> r, tensor<fp16, [1, 1, 64, 64]> w) {
        tensor<fp16, [1, 64, 1, 64]> a = mul(x = y, y = r);
        tensor<fp16, [1, 1, 64, 64]> v = reshape(x = x, shape = tensor<int32, [4]>([1, 1, 64, 64]));
        tensor<fp16, [1, 1, 64, 64]> h = matmul(x = w, y = v);
        tensor<fp16, [1, 64, 1, 64]> b = reshape(x = h, shape = tensor<int32, [4]>([1, 64, 1, 64]));
        tensor<fp16, [1, 64, 1, 64]> z = add(x = a, y = b);
    } -> (z)""")
    controlled, _ = control_ranges(program)
    scaled = [op.args["x"].name for op in controlled.ops if op.output.name.endswith("_scaled")]
    assert "r" in scaled and "a" not in scaled
    assert runs_alike(program)


@pytest.mark.parametrize("op", ["maximum(x = x, y = fp16(0))", "reshape(x = x, shape = tensor<int32, [4]>([1, 32, 1, 64]))",
                                "reduce_sum(x = x, axes = tensor<int32, [1]>([-1]), keep_dims = bool(true))"])  # fmt: skip
def test_ops_that_scale_with_their_operand_need_no_multiplier(op):
    shape = "[1, 1, 32, 1]" if "reduce" in op else "[1, 32, 1, 64]" if "reshape" in op else "[1, 1, 32, 64]"
    program = main(f"(tensor<fp16, [1, 1, 32, 64]> x) {{ tensor<fp16, {shape}> y = {op}; }} -> (y)")
    assert control_ranges(program)[1].multipliers == ()


def test_a_step_of_zero_and_one_reads_its_operand_as_it_lies():
    program = main("""(tensor<fp16, [1, 1, 32, 64]> x) {
        tensor<fp16, [1, 1, 32, 64]> p = maximum(x = x, y = fp16(0));
        tensor<fp16, [1, 1, 32, 64]> d = maximum(x = p, y = fp16(0x1p-24));
        tensor<fp16, [1, 1, 32, 64]> y = real_div(x = p, y = d);
    } -> (y)""")
    _, ranges = control_ranges(program)
    assert ranges.multipliers == () and ranges.outputs == (UNSCALED,)


def test_a_constant_that_only_selects_is_no_product():
    rows = ", ".join("[" + ", ".join("1.0" if i == j else "0.0" for j in range(4)) + "]" for i in range(4))
    program = main(f"""(tensor<fp16, [1, 1, 4, 32]> x) {{
        tensor<fp16, [1, 1, 4, 32]> y = matmul(x = tensor<fp16, [1, 1, 4, 4]>([[[{rows}]]]), y = x);
    }} -> (y)""")
    _, ranges = control_ranges(program)
    assert ranges.multipliers == () and ranges.outputs == (I0,)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["forward", "norm_gradient"])
def test_a_llama_layer_keeps_its_numbers_under_any_powers(name, seed):
    natural = getattr(llama_layer, name)()
    lowered = passes.lower(natural, chips.load(), {})
    flat = inline_constants(lowered.program)
    assert runs_alike(flat, seed=seed) or name != "forward"


@pytest.mark.parametrize("chip", chips.names())
def test_what_comes_of_it_is_legal(chip):
    lowered = passes.lower(llama_layer.forward(), chips.load(chip), {}, ranges=Inputs())
    assert lowered.ranges is not None and len(lowered.ranges.multipliers) >= 11
    assert chips.refusals(lowered.program, chips.load(chip)) == ()


NORM = """(tensor<fp16, [1, 64, 1, 64]> x, tensor<fp16, [1, 1, 1, 64]> s) {
    tensor<fp16, [1, 1, 1, 64]> r = exp(x = s);
    tensor<fp16, [1, 64, 1, 64]> y = mul(x = x, y = r);
} -> (y)"""


def test_what_a_norm_divides_comes_out_as_it_is():
    _, ranges = control_ranges(main(NORM))
    assert ranges.outputs == (UNSCALED,) and ranges.multipliers == (-I1, -I0)
    assert runs_alike(main(NORM))


def test_a_gradient_that_a_norm_passes_on_keeps_its_power():
    _, ranges = control_ranges(main(NORM), None, Inputs(gradients=frozenset("x")))
    assert ranges.outputs == (I0,) and ranges.multipliers == (-I1,)
