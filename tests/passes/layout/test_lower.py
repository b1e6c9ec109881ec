"""The layout pass on the parts of a Transformer, and what it does at the edge of a program."""

import numpy as np
import pytest
from golden import main, text_of
from layouts import (
    assert_legal,
    attention,
    count,
    linear,
    llama_layer,
    lowered_and_run,
    rms_norm,
    rope,
    split_heads,
)  # fmt: skip

from torchane.abi.ports import PortLayout, port_layout, weight_port_layout
from torchane.errors import CompileError
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Program
from torchane.passes.layout import lower_layout

TOKENS = (2, 32, 64)  # (B, S, C)


def statements(program: Program) -> list[str]:
    """`result [shape] = kind(operands)`, an op a line."""
    return [
        f"{op.output.name} {list(op.output.shape)} = {op.kind.name}({', '.join(var.name for var in op.inputs)})"
        for op in program.ops
    ]


def test_linear_is_a_product_with_the_weight_on_the_left():
    b = Builder()
    x, w = b.input("x", TOKENS), b.input("w", (96, 64))
    y = b.identity(x=linear(b, x, w), name="y")
    lowered, layouts = lowered_and_run(b.program(y), weights=["w"])
    assert layouts["x"] == PortLayout(TOKENS, (2, 0, 1), (1, 64, 1, 64), 64)
    assert text_of(lowered) == text_of(
        main("""(tensor<fp16, [1, 64, 1, 64]> x, tensor<fp16, [1, 1, 96, 64]> w) {
        tensor<fp16, [1, 1, 64, 64]> x_view = reshape(x = x, shape = tensor<int32, [4]>([1, 1, 64, 64]));
        tensor<fp16, [1, 1, 96, 64]> matmul = matmul(x = w, y = x_view, transpose_x = bool(false), transpose_y = bool(false));
        tensor<fp16, [1, 96, 1, 64]> y = reshape(x = matmul, shape = tensor<int32, [4]>([1, 96, 1, 64]));
    } -> (y)""")
    )


def linear_backward() -> tuple[Program, dict[str, PortLayout | None]]:
    """dx and dw of y = x w^T, x as the forward left it."""
    b = Builder()
    x, w, dy = b.input("x", TOKENS), b.input("w", (96, 64)), b.input("dy", (2, 32, 96))
    flat = b.reshape(x=dy, shape=(64, 96))
    dx = b.reshape(x=b.matmul(x=flat, y=w), shape=TOKENS, name="dx")
    dw = b.matmul(x=b.transpose(x=flat, perm=(1, 0)), y=b.reshape(x=x, shape=(64, 64)), name="dw")
    weight = weight_port_layout((96, 64))
    return b.program(dx, dw), {"x": port_layout(TOKENS, (2, 0, 1)), "w": weight, "dy": None, "dw": weight}


def test_linear_backward_takes_the_weight_transposed_and_leaves_its_gradient_in_torchs_order():
    program, ports = linear_backward()
    lowered, layouts = lowered_and_run(program, ports, weights=["w", "dw"])
    assert statements(lowered) == [
        "dy_view [1, 1, 96, 64] = reshape(dy)",
        "matmul [1, 1, 64, 64] = matmul(w, dy_view)",
        "x_view [1, 1, 64, 64] = reshape(x)",
        "dw [1, 1, 96, 64] = matmul(dy_view, x_view)",
        "dx [1, 64, 1, 64] = reshape(matmul)",
    ]
    assert [(op.value("transpose_x"), op.value("transpose_y")) for op in lowered.ops if op.kind.name == "matmul"] == [
        (True, False), (False, True),
    ]  # fmt: skip
    assert layouts["dy"].shape == (1, 96, 1, 64) and layouts["dw"] == ports["dw"]


def test_a_norm_reduces_over_channels():
    b = Builder()
    y = rms_norm(b, b.input("x", TOKENS), b.input("gain", (64,)))
    lowered, _ = lowered_and_run(b.program(y), weights=["gain"])
    assert statements(lowered) == [
        "mul [1, 64, 1, 64] = mul(x, x)",
        "reduce_sum [1, 1, 1, 64] = reduce_sum(mul)",
        "mul_1 [1, 1, 1, 64] = mul(reduce_sum)",
        "add [1, 1, 1, 64] = add(mul_1)",
        "pow [1, 1, 1, 64] = pow(add)",
        "mul_2 [1, 64, 1, 64] = mul(x, pow)",
        "gain_view [1, 64, 1, 1] = reshape(gain)",
        "mul_3 [1, 64, 1, 64] = mul(mul_2, gain_view)",
    ]
    assert lowered.ops[1].value("axes") == (1,)


def heads_program(batch: int) -> Program:
    b = Builder()
    q, k, v = (split_heads(b, b.input(name, (batch, 32, 64)), 4) for name in "qkv")
    attended, _ = attention(b, q, k, v)
    return b.program(b.reshape(x=b.transpose(x=attended, perm=(0, 2, 1, 3)), shape=(batch, 32, 64), name="y"))


def test_attention_of_one_sequence_moves_nothing():
    lowered, _ = lowered_and_run(heads_program(1))
    assert statements(lowered) == [
        "q_view [1, 4, 16, 32] = reshape(q)",
        "k_view [1, 4, 16, 32] = reshape(k)",
        "matmul [1, 4, 32, 32] = matmul(q_view, k_view)",
        "mul [1, 4, 32, 32] = mul(matmul)",
        "add [1, 4, 32, 32] = add(mul)",
        "softmax [1, 4, 32, 32] = softmax(add)",
        "v_view [1, 4, 16, 32] = reshape(v)",
        "matmul_1 [1, 4, 16, 32] = matmul(v_view, softmax)",
        "y [1, 64, 1, 32] = reshape(matmul_1)",
    ]
    scores, product = (op for op in lowered.ops if op.kind.name == "matmul")
    assert (scores.value("transpose_x"), scores.value("transpose_y")) == (True, False)
    assert (product.value("transpose_x"), product.value("transpose_y")) == (False, True)


def test_attention_of_free_ports_chooses_ports_that_need_no_move():
    lowered, layouts = lowered_and_run(heads_program(2))
    assert count(lowered, "transpose") == 0
    assert layouts["q"].shape == (1, 2, 64, 32)  # (B, C, S), and not tokens last


def test_attention_between_token_ports_moves_each_of_its_values_once():
    tokens = port_layout((2, 32, 64), (2, 0, 1))
    lowered, _ = lowered_and_run(heads_program(2), dict.fromkeys(("q", "k", "v", "y"), tokens))
    assert count(lowered, "transpose") == 4


def test_rope_broadcasts_its_tables_over_heads():
    b = Builder()
    lowered, _ = lowered_and_run(b.program(rope(b, split_heads(b, b.input("x", (1, 32, 64)), 4))))
    assert statements(lowered) == [
        "x_view [1, 4, 16, 32] = reshape(x)",
        "mul [1, 4, 16, 32] = mul(x_view)",
        "matmul [1, 4, 16, 32] = matmul(x_view)",
        "mul_1 [1, 4, 16, 32] = mul(matmul)",
        "add [1, 4, 16, 32] = add(mul, mul_1)",
    ]
    assert lowered.ops[1].args["y"].shape == (1, 1, 16, 32)


@pytest.mark.parametrize(("batch", "kv_heads", "moves"), [(1, 4, 0), (1, 2, 0), (2, 4, 4), (2, 2, 4)])
def test_a_llama_layer_moves_nothing_but_heads_of_a_batch(batch, kv_heads, moves):
    program, weights = llama_layer(batch, 32, 64, 4, kv_heads, 96)
    lowered, layouts = lowered_and_run(program, weights=weights)
    assert_legal(lowered, layouts)
    assert count(lowered, "transpose") == moves
    assert layouts["x"].shape == layouts["y"].shape == (1, 64, 1, 32 * batch)
    assert all(layouts[name].shape == weight_port_layout(layouts[name].logical).shape for name in weights)


@pytest.mark.parametrize("batch", [1, 3])
def test_tokens_that_fill_no_row_cost_reshapes_only(batch):
    program, weights = llama_layer(batch, 20, 64, 4, 4, 96)
    lowered, layouts = lowered_and_run(program, weights=weights)
    assert_legal(lowered, layouts)
    assert not any(layout.is_padded for layout in layouts.values())
    assert count(lowered, "transpose") == (0 if batch == 1 else 4)


def test_an_axis_that_is_merged_is_gathered_by_one_transpose():
    b = Builder()
    x = b.transpose(x=b.input("x", (4, 8, 32)), perm=(0, 2, 1))
    program = b.program(b.reshape(x=b.exp(x=x), shape=(128, 8), name="y"))
    ports = {"x": port_layout((4, 8, 32), (0, 1, 2)), "y": port_layout((128, 8), (0, 1))}
    lowered, _ = lowered_and_run(program, ports)
    assert count(lowered, "transpose") == 1


def test_a_split_axis_costs_nothing():
    b = Builder()
    x = b.reshape(x=b.input("x", (64, 96)), shape=(64, 2, 3, 16))
    lowered, _ = lowered_and_run(b.program(b.exp(x=b.transpose(x=x, perm=(1, 2, 0, 3)), name="y")))
    assert statements(lowered) == ["y_1 [1, 96, 1, 64] = exp(x)", "y [1, 6, 16, 64] = reshape(y_1)"]


def test_five_axes_are_reversed_by_two_transposes():
    b = Builder()
    x = b.input("x", (2, 3, 4, 5, 32))
    program = b.program(b.exp(x=b.transpose(x=x, perm=(4, 3, 2, 1, 0)), name="y"))
    ports = {"x": port_layout(x.shape, (0, 1, 2, 3, 4)), "y": port_layout((32, 5, 4, 3, 2), (0, 1, 2, 3, 4))}
    lowered, _ = lowered_and_run(program, ports)
    assert count(lowered, "transpose") == 2


def test_heads_that_share_keys_join_the_rows_of_their_queries():
    b = Builder()
    q, k = b.input("q", (2, 3, 32, 16)), b.input("k", (2, 1, 16, 32))
    program = b.program(b.matmul(x=q, y=k))
    ports = {"q": port_layout(q.shape, (0, 1, 2, 3)), "k": port_layout(k.shape, (0, 2, 3))}
    lowered, _ = lowered_and_run(program, ports)
    (product,) = [op for op in lowered.ops if op.kind.name == "matmul"]
    assert [var.shape for var in product.inputs] == [(1, 2, 96, 16), (1, 2, 16, 32)]


def test_softmax_over_an_inner_axis_has_it_moved_to_the_end():
    b = Builder()
    x = b.input("x", (4, 32, 64))
    lowered, _ = lowered_and_run(b.program(b.softmax(x=x, axis=1)), {"x": port_layout(x.shape, (0, 1, 2))})
    assert [op.kind.name for op in lowered.ops][:2] == ["transpose", "softmax"]
    assert lowered.ops[1].value("axis") == 3


def test_a_maximum_is_taken_along_rows_and_a_sum_along_channels():
    b = Builder()
    x = b.input("x", (32, 64))
    program = b.program(b.reduce_max(x=x, axes=(1,), keep_dims=False), b.reduce_sum(x=x, axes=(1,), keep_dims=True))
    lowered, _ = lowered_and_run(program, {"x": port_layout(x.shape, (1, 0))})
    assert [op.value("axes") for op in lowered.ops if op.kind.name.startswith("reduce")] == [(3,), (1,)]


def test_a_conv_stays_as_it_is():
    b = Builder()
    weight = np.linspace(-1, 1, 96 * 64).astype(np.float16).reshape(96, 64, 1, 1)
    y = b.conv(x=b.input("x", (1, 64, 1, 32)), weight=weight, bias=np.ones(96, np.float16), pad_type="valid", name="y")
    lowered, layouts = lower_layout(b.program(y), {})
    assert statements(lowered) == ["y [1, 96, 1, 32] = conv(x)"]
    assert layouts["x"].perm == (0, 1, 2, 3)


def test_scalars_go_in_and_out_padded():
    b = Builder()
    scale = b.input("scale", ())
    lowered, layouts = lowered_and_run(b.program(b.mul(x=scale, y=scale, name="y")))
    assert layouts["scale"].shape == layouts["y"].shape == (1, 1, 1, 32)
    assert statements(lowered) == [
        "scale_used [1, 1, 1, 1] = slice_by_size(scale)",
        "y_1 [1, 1, 1, 1] = mul(scale_used, scale_used)",
        "y [1, 1, 1, 32] = matmul(y_1)",
    ]


def test_what_a_padded_output_holds_beside_is_zero():
    b = Builder()
    lowered, layouts = lower_layout(b.program(b.exp(x=b.input("x", (3, 5)), name="y")), {})
    surface = evaluate(lowered, {"x": layouts["x"].stored(np.ones((3, 5)))})["y"]
    assert (surface[..., layouts["y"].used :] == 0).all()


def test_an_output_that_is_an_input_under_another_shape_is_copied():
    b = Builder()
    x = b.input("x", (32, 64))
    lowered, layouts = lowered_and_run(b.program(b.exp(x=x), b.transpose(x=x, perm=(1, 0), name="y")))
    assert_legal(lowered, layouts)
    assert [op.kind.name for op in lowered.ops] == ["exp", "identity"]


def test_two_outputs_of_one_value_are_two_values():
    b = Builder()
    y = b.exp(x=b.input("x", (32, 64)), name="y")
    lowered, layouts = lowered_and_run(b.program(y, b.transpose(x=y, perm=(1, 0), name="t"), y))
    assert_legal(lowered, layouts)
    assert [var.name for var in lowered.outputs] == ["y", "t", "y_1"]
    assert layouts["y_1"] == layouts["y"]


def test_inputs_that_nobody_reads_stay():
    b = Builder()
    x, unused = b.input("x", (32, 64)), b.input("unused", (7,))
    lowered, layouts = lower_layout(b.program(b.exp(x=x)), {})
    assert [var.name for var in lowered.inputs] == ["x", unused.name]
    assert layouts["unused"].shape == (1, 1, 1, 32)


@pytest.mark.parametrize(
    ("build", "ports", "message"),
    [
        (lambda b, x: b.program(x), {}, "the output x is an input as it came"),
        (lambda b, x: b.program(b.reshape(x=x, shape=(2048,))), {}, "the only output"),
        (lambda b, x: b.program(b.exp(x=x)), {"w": None}, "layouts are given for w"),
        (lambda b, x: b.program(b.exp(x=x)), {"x": port_layout((64, 32), (0, 1))}, "of a tensor of shape"),
        (lambda b, x: b.program(b.exp(x=x)), {"x": PortLayout((32, 64), (0, 1), (1, 1, 128, 16), 16)}, "rows of 16"),
        (lambda b, x: b.program(b.cast(x=x, dtype="fp32")), {}, "a port is a tensor of fp16"),
        (lambda b, x: b.program(b.cumsum(x=x, axis=0)), {}, "cumsum has no rank-4 form"),
        (lambda b, x: b.program(b.pad(x=x, pad=(1, 1), mode="reflect")), {}, "only 'constant'"),
    ],
)  # fmt: skip
def test_what_cannot_be_laid_out_is_refused_by_name(build, ports, message):
    b = Builder()
    with pytest.raises(CompileError, match=message):
        lower_layout(build(b, b.input("x", (32, 64))), ports)


def test_a_broadcast_over_five_separate_axes_is_refused_with_its_shapes():
    b = Builder()
    cond = b.greater(x=b.input("c", (2, 1, 1, 2, 1)), y=0.0)
    z = b.select(cond=cond, a=b.input("a", (1, 2, 1, 2, 2)), b=b.input("b", (1, 1, 2, 1, 2)))
    with pytest.raises(CompileError, match=r"select of .*2, 1, 1, 2, 1.* broadcasts over more than four separate axes"):
        lower_layout(b.program(z), {})


def test_a_broadcast_over_five_axes_is_regrouped_where_that_leaves_four():
    b = Builder()
    x, y = b.input("x", (2, 1, 3, 1, 4)), b.input("y", (1, 5, 1, 6, 1))
    lowered, layouts = lowered_and_run(b.program(b.add(x=x, y=y)))
    assert_legal(lowered, layouts)
