"""The numbers of a program: beside Apple's own summary, and counted by hand."""

import re
from collections import Counter

import numpy as np
import pytest

from torchane.inspect.mlmodelc import read_metadata
from torchane.inspect.recognize import load_program
from torchane.inspect.report import report
from torchane.mil import parse
from torchane.mil.build import Builder

MODELS = (
    "coremltools-add_model", "mobius-silero-silero-vad-unified-v6.0.0", "mobius-silero-unified_256ms_int8",
    "mobius-silero-unified_int8", "mobius-silero-unified_palette_2bit", "mobius-silero-unified_palette_8bit",
)  # fmt: skip


def histogram(metadata: dict) -> Counter:
    """Apple's `Ios16.constexprAffineDequantize` is our constexpr_affine_dequantize."""
    found: Counter = Counter()
    for name, count in metadata["mlProgramOperationTypeHistogram"].items():
        word = name.rpartition(".")[2]
        found[re.sub(r"(?<=.)([A-Z])", r"_\1", word).lower()] += count
    return found


@pytest.mark.parametrize("name", MODELS)
def test_ops_are_counted_as_apples_compiler_counts_them(shared_data, name):
    folder = shared_data / "mil_compiled" / f"{name}.mlmodelc"
    (function,) = report(load_program(folder))
    assert Counter(function.ops) == histogram(read_metadata(folder))


def test_all_forms_of_one_model_have_its_parameters_and_its_work(shared_data):
    found = {
        (function.parameters, function.macs)
        for name in MODELS
        if "silero" in name and "256ms" not in name
        for function in report(load_program(shared_data / "mil_compiled" / f"{name}.mlmodelc"))
    }
    assert found == {(309_121, 679_552)}


def test_a_linear_layer_by_hand():
    b = Builder()
    x = b.input("x", (3, 4))
    weight, bias = np.ones((8, 4), np.float16), np.ones(8, np.float16)
    y = b.linear(x=x, weight=weight, bias=bias)
    y = b.transpose(x=b.mul(x=y, y=0.5), perm=(1, 0))
    (function,) = report(b.program(y))
    assert (function.parameters, function.macs) == (8 * 4 + 8, 3 * 4 * 8)
    assert function.ops == {"linear": 1, "mul": 1, "transpose": 1}
    assert function.constant_bytes == 2 * (8 * 4 + 8) + 2 + 2 * 4
    assert [line.kind for line in function.lines] == ["linear", "mul", "transpose"]


def test_a_weight_that_two_ops_read_counts_once():
    text = """func main(tensor<fp16, [2, 4]> x) {
        tensor<fp16, [4, 4]> w = const()[val = tensor<fp16, [4, 4]>(BLOBFILE(path = string("w"), offset = uint64(64)))];
        tensor<fp16, [2, 4]> y = matmul(x = x, y = w);
        tensor<fp16, [2, 4]> z = matmul(x = y, y = w);
    } -> (z);"""
    (function,) = report(parse(text))
    assert (function.parameters, function.macs) == (16, 2 * 2 * 4 * 4)
    assert [(constant.name, constant.place) for constant in function.weights] == [("w", "w at 64")]


def test_open_sizes_and_unknown_ops_are_said():
    text = """func main(tensor<fp16, [?, 4]> x) {
        tensor<fp16, [?, 4]> y = matmul(x = x, y = x, transpose_y = true);
        tensor<fp16, [?, 4]> z = frobnicate(x = y);
    } -> (z);"""
    (function,) = report(parse(text))
    assert (function.macs, function.unsized, function.unknown) == (0, 1, ("frobnicate",))
