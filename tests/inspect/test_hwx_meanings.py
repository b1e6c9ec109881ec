"""What tasks do, in words."""

import pytest

from torchane.inspect import hwx
from torchane.inspect.hwx.describe import describe
from torchane.inspect.hwx.meanings import meanings


@pytest.mark.parametrize(("name", "words"), [
    ("conv-8a6bd4", {"input": "fp16", "output": "fp16", "weights": "fp16"}),
    ("conv-ea5905", {"input": "fp16", "output": "fp16", "weights": "fp16"}),
    ("gemm-ef7e5c", {"input": "fp16", "output": "fp16", "weights": "fp16"}),
    ("relu-d66a66", {"input": "fp16", "output": "fp16", "nonlinear": "ReLU"}),
    ("relu-dc54cc", {"input": "fp16", "output": "fp16", "nonlinear": "ReLU"}),
    ("sum", {"input": "fp16", "output": "fp16"}),
])  # fmt: skip
def test_shared_programs_do_what_their_names_say(shared_data, name, words):
    found = describe(hwx.parse((shared_data / "hwx" / f"tinygrad-ops-{name}.hwx").read_bytes()))
    assert [task["does"] for task in found["tasks"]] == [words]


@pytest.mark.parametrize(("version", "registers", "words"), [
    (7, {0x8800: 1 << 1 | 4 << 2}, {"planar": "sub"}),
    (7, {0x8800: 4 << 2}, {}),
    (7, {0xC800: 1 << 2 | 1 << 8}, {"weights": "int8", "palettized": "yes", "sparse": "yes"}),
    (17, {0x3C: 8 << 4}, {"class": "pooling"}),
    (17, {0x3C: 12 << 4}, {"class": "12"}),
    (17, {0x4904: 1 << 26 | 5}, {"engine": "transposed conv", "two int8 products at once": "yes"}),
    (17, {0x4500: 2 | 4 << 2}, {"pool": "max", "planar": "sum of squares"}),
    (11, {0x28: 3}, {"class": "element-wise"}),
    (36, {0x28: 3}, {}),
])  # fmt: skip
def test_values_have_the_words_of_the_reference(version, registers, words):
    assert meanings(version, registers) == words
