"""Spoiled inputs end in a value or in our error, within seconds and within memory: see fuzz_text, fuzz_blobs, fuzz_load.

The short tier runs fifteen thousand, the long one 870,000.
"""

import resource
import sys
from pathlib import Path

import fuzz_blobs
import fuzz_load
import fuzz_text
import pytest

from torchane.errors import CompileError, ParseError
from torchane.mil import check, parse

#: How much the largest memory of the process may grow while kilobytes are read.
MEMORY_MIB = 400


#: A function for each op of the table.
EVERY_OP = tuple(
    "func" + function
    for function in Path(__file__).with_name("golden").joinpath("every_op.mil").read_text().split("func")[1:]
)


@pytest.fixture
def bounded_memory():
    def peak_mib() -> float:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)

    before = peak_mib()
    yield
    assert peak_mib() - before < MEMORY_MIB


def test_spoiled_texts(bounded_memory):
    ends = fuzz_text.fuzz(3_000, seed=1)
    assert ends["read"] + ends["well formed"] > 100, ends
    assert ends["refused"] > 1_000, ends


def test_spoiled_ops(bounded_memory):
    ends = fuzz_text.fuzz(5_000, seed=2, seeds=EVERY_OP)
    assert ends["read"] > 50, ends
    assert ends["well formed"] > 100, ends


def test_spoiled_weight_files(bounded_memory):
    ends = fuzz_blobs.fuzz(5_000, seed=1)
    assert ends["read"] > 500, ends
    assert ends["no record"] > 500, ends


def test_spoiled_programs_with_weights(bounded_memory):
    ends = fuzz_load.fuzz(2_000, seed=1)
    assert ends["ran"] > 20, ends


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 102))
def test_sixty_thousand_spoiled_programs_with_weights(seed, bounded_memory):
    fuzz_load.fuzz(30_000, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 110))
def test_three_hundred_thousand_spoiled_texts(seed, bounded_memory):
    fuzz_text.fuzz(30_000, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 110))
def test_three_hundred_thousand_spoiled_weight_files(seed, bounded_memory):
    fuzz_blobs.fuzz(30_000, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(110, 115))
def test_two_hundred_thousand_spoiled_ops(seed, bounded_memory):
    fuzz_text.fuzz(40_000, seed, EVERY_OP)


@pytest.mark.long
def test_spoiled_real_texts(shared_data, bounded_memory):
    files = [path.read_text() for path in sorted(shared_data.rglob("*.mil")) if path.stat().st_size < 10_000]
    fuzz_text.fuzz(10_000, 7, tuple(files))


@pytest.mark.parametrize("text", [
    "[" * 1_000_000,
    "func main(" + "tuple<" * 1_000_000,
    "/*" * 500_000,
    "func main() { fp16 c = const()[val = tensor<fp16, [1152921504606846976]>([1])]; } -> (c);",
    "func main() { fp16 c = const()[val = fp16(" + "9" * 1_000_000 + ")]; } -> (c);",
    "func main() { fp16 c = const()[val = fp16(1e" + "9" * 1_000_000 + ")]; } -> (c);",
    'func main() { string c = const()[val = string("' + "\\x41" * 300_000,
    "func main(fp16 x) {" + "fp16 y = f(p = x) {" * 100_000,
    "func main(fp16 x) {" + "fp16 y = f(" + "a = x, " * 100_000,
    " " * 2_000_000,
    "\n" * 2_000_000 + "x",
])  # fmt: skip
def test_large_nonsense_is_refused_at_once(text, bounded_memory):
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert len(str(caught.value)) < 3_000


def test_a_program_that_reads_names_and_means_nothing_is_refused_by_the_checker():
    with pytest.raises(CompileError):
        check(parse("func main(fp16 x) { tensor<fp16, [9223372036854775807]> y = relu(x = x); } -> (y);"))
