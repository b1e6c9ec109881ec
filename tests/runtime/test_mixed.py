"""Programs cut between the twin and NumPy: what runs where, why, in what order, and the evaluator's numbers."""

import numpy as np
import pytest

from torchane.errors import UsageError
from torchane.inspect.recognize import load_program
from torchane.mil import evaluate, parse
from torchane.runtime.mixed import run_mixed

#: exp and mul have kernels, cumsum has none; mul and b can wait for nothing.
MIXED = """func main(tensor<fp16, [1, 4, 8]> x) {
    tensor<fp16, [1, 4, 8]> a = exp(x = x);
    tensor<fp16, [1, 4, 8]> c = cumsum(x = a, axis = int32(2), exclusive = bool(false), reverse = bool(false));
    tensor<fp16, [1, 4, 8]> b = mul(x = a, y = fp16(0.5));
    tensor<fp16, [1, 4, 8]> d = add(x = c, y = b);
} -> (d, c, b);"""
X = np.random.default_rng(0).standard_normal((1, 4, 8)).astype(np.float16)


@pytest.mark.parametrize("arithmetic", ["exact", "engine"])
def test_only_what_has_no_kernel_goes_through_numpy(arithmetic):
    program = parse(MIXED)
    ran = run_mixed(program, {"x": X}, arithmetic=arithmetic)
    assert [(op.name, op.kind) for op in ran.elsewhere] == [("c", "cumsum")]
    assert "no kernel" in ran.elsewhere[0].reason
    assert ran.native_ops == 3
    wanted = evaluate(program, {"x": X}, arithmetic=arithmetic)
    assert {name: value.tobytes() for name, value in ran.outputs.items()} == {
        name: value.tobytes() for name, value in wanted.items()
    }


def test_a_part_on_the_twin_is_as_long_as_it_can_be():
    """mul stands behind cumsum and does not read it: it joins exp, and one program less is dispatched."""
    assert run_mixed(parse(MIXED), {"x": X}).dispatches == 2


def test_ideal_arithmetic_is_all_numpy():
    ran = run_mixed(parse(MIXED), {"x": X}, arithmetic="ideal")
    assert (ran.native_ops, len(ran.elsewhere)) == (0, 4)
    assert ran.outputs["b"].dtype == np.float64


def test_open_sizes_are_closed_by_the_inputs_and_run_on_the_twin():
    ran = run_mixed(parse(MIXED.replace("[1, 4, 8]", "[1, ?, ?]")), {"x": X})
    assert ran.native_ops == 3
    assert ran.outputs["d"].shape == (1, 4, 8)


@pytest.mark.parametrize(("statement", "said"), [
    ("tensor<fp32, [4]> y = cast(dtype = string(\"fp32\"), x = x);", "y is a tensor<fp32, [4]>"),
    ("tensor<int32, [?, 1]> y = non_zero(x = x);", "no kernel"),
    ("tensor<fp16, [0]> y = slice_by_size(begin = tensor<int32, [1]>([0]), size = tensor<int32, [1]>([0]), x = x);", "y is empty"),
    ("tensor<fp16, [1, 2, 1, 1]> y = conv(x = tensor<fp16, [1, 1, 2, 1]>([[[[1], [2]]]]), weight = tensor<fp16, [2, 1, 2, 1]>([[[[1], [2]]], [[[1], [2]]]]));", "1x1 convolutions"),
])  # fmt: skip
def test_the_reason_is_that_of_the_op(statement, said):
    ran = run_mixed(parse(f"func main(tensor<fp16, [4]> x) {{ {statement} }} -> (y);"), {"x": np.ones(4)})
    assert len(ran.elsewhere) == 1
    assert said in ran.elsewhere[0].reason


def test_states_are_read_and_written_in_order():
    text = """func main(state<tensor<fp16, [4]>> s, tensor<fp16, [4]> x) {
        tensor<fp16, [4]> before = read_state(input = s);
        tensor<fp16, [4]> sum = add(x = before, y = x);
        write_state(input = s, data = sum);
        tensor<fp16, [4]> after = read_state(input = s);
        tensor<fp16, [4]> twice = add(x = after, y = after);
    } -> (before, twice);"""
    states: dict[str, np.ndarray] = {"s": np.full(4, 2, np.float16)}
    ran = run_mixed(parse(text), {"x": np.ones(4)}, states=states)
    assert ran.outputs["before"].tolist() == [2, 2, 2, 2]
    assert ran.outputs["twice"].tolist() == [6, 6, 6, 6]
    assert states["s"].tolist() == [3, 3, 3, 3]
    assert ran.native_ops == 2


def test_a_block_runs_in_numpy_with_what_the_twin_computed_around_it():
    text = """func main(bool p, tensor<fp16, [4]> x) {
        tensor<fp16, [4]> a = exp(x = x);
        tensor<fp16, [4]> y = cond(pred = p) then() { tensor<fp16, [4]> b = add(x = a, y = x); } -> (b) other() { } -> (a);
        tensor<fp16, [4]> z = relu(x = y);
    } -> (z);"""
    ran = run_mixed(parse(text), {"x": np.ones(4), "p": np.array(True)})
    assert ran.outputs["z"].tolist() == [float(np.float16(np.e) + np.float16(1))] * 4
    assert [op.kind for op in ran.elsewhere] == ["cond", "add"]
    assert ran.elsewhere[1].reason == "it stands in a block of y"
    assert ran.native_ops == 2


def test_a_constant_and_an_input_may_leave_as_they_are():
    text = "func main(fp16 x) { fp16 c = const()[val = fp16(2)]; fp16 y = mul(x = x, y = c); } -> (c, x, y);"
    ran = run_mixed(parse(text), {"x": np.float16(3)})
    assert {name: float(value) for name, value in ran.outputs.items()} == {"c": 2, "x": 3, "y": 6}
    assert ran.elsewhere == ()


def test_missing_and_misshapen_inputs_are_named():
    with pytest.raises(UsageError, match="no value for the input x"):
        run_mixed(parse(MIXED), {})
    with pytest.raises(UsageError, match="was given the shape"):
        run_mixed(parse(MIXED), {"x": np.ones(3)})


@pytest.mark.parametrize("arithmetic", ["exact", "engine"])
@pytest.mark.parametrize("name", ["silero-vad-unified-v6.0.0", "unified_palette_8bit", "unified_int8"])
def test_a_real_model_is_the_evaluators(name, arithmetic, shared_data):
    """Sums are kept in fp32 by the kernels and in float64 by the evaluator: one rounding of fp16 at 0.25."""
    program = load_program(shared_data / "mil_compiled" / f"mobius-silero-{name}.mlmodelc")
    rng = np.random.default_rng(0)
    inputs = {var.name: rng.standard_normal(var.shape).astype(np.float32) for var in program.inputs}
    ran = run_mixed(program, inputs, arithmetic=arithmetic)
    assert ran.native_ops > 20
    assert "lstm" in {op.kind for op in ran.elsewhere}
    for key, wanted in evaluate(program, inputs, arithmetic=arithmetic).items():
        np.testing.assert_allclose(ran.outputs[key], wanted, atol=2**-12)
