"""Convolutions and their gradients against torch in float64, in every geometry."""

import warnings

import pytest
import torch
from harness import check, compare
from hypothesis import given, settings
from hypothesis import strategies as st

import torchane
from torchane import chips, passes
from torchane.capture.rules.convolution import convolution
from torchane.mil.build import Builder

aten = torch.ops.aten


def check_convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    options = (stride, padding, dilation, transposed, output_padding, groups)
    check(aten.convolution.default, x, weight, bias, *options)
    y = aten.convolution(x, weight, bias, *options)
    grad = torch.cos(torch.arange(y.numel()) * 1.0).reshape(y.shape)
    sizes = None if bias is None else list(bias.shape)
    check(aten.convolution_backward.default, grad, x, weight, sizes, *options, [True, True, bias is not None])


@pytest.mark.parametrize(
    "case",
    [
        {"kernel": (1, 1)},
        {"kernel": (3, 3), "padding": (1, 1)},
        {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0)},
        {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "size": (8, 7)},
        {"kernel": (3, 3), "dilation": (2, 1), "padding": (2, 2)},
        {"kernel": (4, 4), "stride": (4, 4), "size": (8, 8)},
        {"kernel": (2, 3), "stride": (2, 3), "size": (9, 8)},
        {"kernel": (3, 3), "groups": 2, "padding": (1, 1)},
        {"kernel": (3, 3), "groups": 4, "padding": (1, 1), "out": 4},
        {"kernel": (3, 3), "groups": 4, "out": 8, "stride": (2, 2)},
        {"kernel": (1, 1), "stride": (2, 2)},
        {"kernel": (5, 5), "padding": (4, 4), "size": (3, 3)},
    ],
    ids=str,
)
@pytest.mark.parametrize("transposed", [False, True])
def test_two_axes(case, transposed):
    groups = case.get("groups", 1)
    x = torch.randn(2, 4, *case.get("size", (7, 6)))
    outputs = case.get("out", 6)
    shape = (4, outputs // groups) if transposed else (outputs, 4 // groups)
    weight, bias = torch.randn(*shape, *case["kernel"]), torch.randn(outputs)
    stride, padding = case.get("stride", (1, 1)), case.get("padding", (0, 0))
    if transposed and case["kernel"] == (5, 5):
        padding = (1, 1)
    check_convolution(x, weight, bias, stride, padding, case.get("dilation", (1, 1)), transposed, (0, 0), groups)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_one_axis(groups, transposed):
    x = torch.randn(2, 4, 9)
    weight = torch.randn(4, 4 // groups, 3)
    check_convolution(x, weight, torch.randn(4), [2], [1], [1], transposed, [0], groups)


def test_output_padding():
    check_convolution(torch.randn(1, 2, 4, 5), torch.randn(2, 3, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [1, 0], 1)
    check_convolution(torch.randn(1, 2, 1, 2), torch.randn(2, 2, 1, 1), None, [1, 1], [0, 0], [1, 2], True, [0, 1], 1)
    check_convolution(torch.randn(1, 2, 4), torch.randn(2, 3, 3), None, [2], [1], [1], True, [1], 1)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_random_geometry(data):
    pair = lambda low, high: [data.draw(st.integers(low, high)) for _ in range(2)]
    kernel, stride, padding, dilation = pair(1, 3), pair(1, 3), pair(0, 2), pair(1, 2)
    groups, transposed = data.draw(st.sampled_from([1, 2])), data.draw(st.booleans())
    extra = [0, 0]
    if transposed:
        extra = [data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation)]
    size = [d * (k - 1) + 1 + data.draw(st.integers(0, 4)) for k, d in zip(kernel, dilation)]
    size = [max(n, 1 + 2 * p) for n, p in zip(size, padding)]
    x = torch.randn(data.draw(st.integers(1, 2)), 2 * groups, *size)
    weight = torch.randn(2 * groups, 2, *kernel)
    check_convolution(x, weight, None, stride, padding, dilation, transposed, extra, groups)


def test_only_the_gradients_asked_for_are_computed():
    x, weight, grad = (
        torch.randn(1, 2, 4, 4).double(),
        torch.randn(3, 2, 3, 3).double(),
        torch.randn(1, 3, 4, 4).double(),
    )
    options = ([3], [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    for mask in ([True, False, False], [False, True, False], [False, False, True]):
        wanted = aten.convolution_backward(grad, x, weight, *options, mask)
        compare(aten.convolution_backward.default, (grad, x, weight, *options, mask), {}, wanted, 1e-9)


def test_patches_need_no_concat():
    b = Builder()
    x, weight = b.input("x", (2, 3, 8, 8)), b.input("w", (5, 3, 4, 4))
    convolution(b, x, weight, None, [4, 4], [0, 0], [1, 1], False, [0, 0], 1)
    assert "concat" not in {op.kind.name for op in b.ops}


def test_pointwise_is_one_product_and_reshapes():
    b = Builder()
    x, weight = b.input("x", (2, 3, 8, 8)), b.input("w", (5, 3, 1, 1))
    convolution(b, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    assert sorted({op.kind.name for op in b.ops}) == ["matmul", "reshape"]


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_costs_little_more_than_its_own_multiply_adds(groups):
    """Nothing joins its taps, which without concat would be more work than itself."""
    layer = torch.nn.Conv2d(64, 64, 3, padding=1, groups=groups, bias=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explained = torchane.explain(torch.nn.Sequential(torch.nn.Conv2d(3, 64, 1), layer), torch.randn(2, 3, 8, 8))
    for plan in explained.plans:
        assert sum(program.macs for program in plan.programs) <= 1.5 * sum(row.macs for row in explained.rows if row.graph == plan.name)


def test_the_taps_of_a_kernel_are_cut_from_one_copy():
    b = Builder()
    x, weight = b.input("x", (1, 32, 7, 7)), b.input("w", (64, 32, 3, 3))
    lowered = passes.lower(b.program(convolution(b, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)), chips.load("portable"), {}, weights={"w"})
    of_kernel = [op for op in lowered.program.ops if op.kind.name in ("transpose", "matmul") and op.output.type.size == 64 * 32 * 9]
    assert [op.kind.name for op in of_kernel] == ["transpose"]
    assert not [op for op in lowered.program.ops if op.kind.name == "matmul" and op.output.type.size == 64 * 32]


def test_the_gradient_of_a_wide_kernel_is_a_legal_program():
    """512 x 512 entries a tap are more than a chip has channels."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layers = torch.nn.Sequential(torch.nn.Conv2d(8, 512, 1), torch.nn.Conv2d(512, 512, 3, padding=1, bias=False))
        assert torchane.explain(layers, torch.randn(2, 8, 3, 3)).share("program") == 1
