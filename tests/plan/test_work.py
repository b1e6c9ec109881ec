"""From MIL to the layers that are priced; multiply-adds meet those of the op table."""

import numpy as np
import pytest

from torchane.chips.points import Layer
from torchane.errors import CompileError
from torchane.inspect.report import report
from torchane.mil.build import Builder
from torchane.mil.ir import literal
from torchane.mil.text import parse
from torchane.plan.work import work_of


def half(*shape: int):
    return literal(np.zeros(shape, np.float16))


def layers_of(b: Builder, *outputs):
    return work_of(b.program(*outputs)).layers


def test_a_convolution_with_a_constant_weight():
    b = Builder()
    x = b.input("x", (2, 48, 5, 7))
    assert layers_of(b, b.conv(x=x, weight=half(64, 48, 3, 3), pad_type="same")) == (Layer("conv", 1, 48 * 9, 64, 2 * 35),)


def test_a_grouped_convolution_is_a_piece_for_each_group_and_was_never_measured():
    b = Builder()
    y = b.conv(x=b.input("x", (1, 64, 4, 8)), weight=half(64, 16, 1, 1), groups=4, pad_type="valid")
    (op,) = work_of(b.program(y)).ops
    assert op.layers == (Layer("conv", 4, 16, 16, 32),)
    assert op.unseen == "a conv of 4 groups was never measured"


def test_a_convolution_whose_weight_is_an_input():
    b = Builder()
    y = b.conv(x=b.input("x", (1, 64, 1, 32)), weight=b.input("w", (96, 64, 1, 1)), pad_type="valid")
    (op,) = work_of(b.program(y)).ops
    assert op.layers == (Layer("dynamic", 1, 64, 96, 32),) and "never measured" in op.unseen


@pytest.mark.parametrize(("shape", "other", "wanted"), [
    ((1, 2, 100, 64), half(64, 256), Layer("linear", 1, 64, 256, 200)),
    (half(1, 1, 256, 64), (1, 2, 64, 100), Layer("linear", 1, 64, 256, 200)),
])  # fmt: skip
def test_a_matmul_with_a_constant_is_one_tall_product(shape, other, wanted):
    b = Builder()
    x, y = (b.input("x", value) if isinstance(value, tuple) else value for value in (shape, other))
    assert layers_of(b, b.matmul(x=x, y=y)) == (wanted,)


def test_a_matmul_of_two_values_is_a_piece_for_each_of_its_batch():
    b = Builder()
    x, y = b.exp(x=b.input("x", (1, 12, 256, 64))), b.exp(x=b.input("y", (1, 12, 64, 256)))
    assert layers_of(b, b.matmul(x=x, y=y))[-1] == Layer("matmul", 12, 64, 256, 256)


def test_a_weight_that_is_an_input_is_found_through_views_and_transposes():
    b = Builder()
    x = b.exp(x=b.input("x", (1, 1, 512, 64)))
    w = b.transpose(x=b.reshape(x=b.input("w", (1, 96, 1, 64)), shape=(1, 1, 96, 64)), perm=(0, 1, 3, 2))
    found = [layer for layer in layers_of(b, b.matmul(x=x, y=w)) if layer.is_product]
    assert found == [Layer("dynamic", 1, 64, 96, 512)]


def test_views_cost_nothing_and_moves_a_pass():
    b = Builder()
    x = b.input("x", (1, 8, 4, 32))
    y = b.transpose(x=b.reshape(x=x, shape=(1, 8, 2, 64)), perm=(0, 2, 1, 3))
    assert layers_of(b, y) == (Layer("pointwise", 1, 1, 16, 64),)


def test_a_reduction_costs_what_it_reads():
    b = Builder()
    assert layers_of(b, b.reduce_sum(x=b.input("x", (1, 8, 4, 32)), axes=(1,), keep_dims=True)) == (Layer("pointwise", 1, 1, 32, 32),)


def test_compressed_weights_cost_what_is_stored():
    text = """program(1.3)
{
    func main<ios16>(tensor<fp16, [1, 64, 1, 32]> x) {
        tensor<fp16, [96, 64, 1, 1]> w = constexpr_affine_dequantize()[axis = int32(0), name = string("w"), quantized_data = tensor<int8, [96, 64, 1, 1]>(BLOBFILE(path = string("@model_path/w.bin"), offset = uint64(64))), scale = fp16(0.5), zero_point = int8(0)];
        tensor<fp16, [1, 96, 1, 32]> y = conv(x = x, weight = w, strides = tensor<int32, [2]>([1, 1]), pad_type = string("valid"), pad = tensor<int32, [4]>([0, 0, 0, 0]), dilations = tensor<int32, [2]>([1, 1]), groups = int32(1))[name = string("y")];
    } -> (y);
}
"""
    (layer,) = work_of(parse(text)).layers
    assert layer.weight_bits == pytest.approx(8, rel=0.01)


def test_surfaces_are_the_ports():
    b = Builder()
    work = work_of(b.program(b.exp(x=b.input("x", (1, 64, 1, 128)))))
    assert (work.bytes_in, work.bytes_out, work.fp32_surfaces) == (16384, 16384, False)


@pytest.mark.parametrize(("shape", "said"), [("[?, 64, 1, 32]", "a size that only the run tells has no price"), ("[1, 64, ?, 32]", "has no price")])
def test_a_size_that_only_the_run_tells_has_no_price(shape, said):
    text = f"program(1.3)\n{{\nfunc main<ios18>(tensor<fp16, {shape}> x) {{ tensor<fp16, {shape}> y = exp(x = x); }} -> (y);\n}}\n"
    with pytest.raises(CompileError, match=said):
        work_of(parse(text))


def test_several_functions_are_named():
    text = "program(1.3)\n{\n" + "".join(
        f"func {name}<ios18>(tensor<fp16, [1, 1, 1, 32]> x) {{ tensor<fp16, [1, 1, 1, 32]> y = exp(x = x); }} -> (y);\n" for name in ("a", "b")
    ) + "}\n"
    with pytest.raises(CompileError, match="the functions a, b; price one at a time"):
        work_of(parse(text))


def test_multiply_adds_are_those_that_inspect_counts(shared_data):
    for name in ("espresso-sdpa_fwd_taps.mil", "espresso-DecodeFFNGenerator.mil", "espresso-fused_qkv.mil"):
        program = parse((shared_data / "mil_generated" / name).read_text(), name)
        assert sum(layer.flops for layer in work_of(program).layers) == 2 * report(program)[0].macs
