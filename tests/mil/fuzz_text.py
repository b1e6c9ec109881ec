"""Spoiled MIL text: the parser gives a program that prints and reads back to itself, or a MilSyntaxError; the
checker accepts it or raises a CompileError.

python tests/mil/fuzz_text.py [COUNT] [SEED]
"""

import sys
import time
from collections import Counter

from fuzz_mutations import mutations

from torchane.errors import CompileError
from torchane.mil import check
from torchane.mil.text import APPLE, MilSyntaxError, parse, to_text

#: Seconds for one input of a few kilobytes: thousands of times what it takes, for machines that are busy.
LIMIT_S = 5.0

SEEDS = (
    """program(1.3)
[buildInfo = dict<string, string>({{"coremlc-component-MIL", "3510.2.1"}, {"coremltools-version", "9.0"}})]
{
    func main<ios18>(tensor<fp16, [1, 4, 1, 32]> x, tensor<fp32, [1, 4]> w) {
        string c_pad_type = const()[name = string("c_pad_type"), val = string("valid")];
        tensor<int32, [4]> c_pad = const()[name = string("c_pad"), val = tensor<int32, [4]>([0, 0, 0, 0])];
        int32 c_groups = const()[name = string("c_groups"), val = int32(1)];
        fp16 k = const()[name = string("k"), val = fp16(0x1.8p-3)];
        tensor<fp16, [6, 4, 1, 1]> W = const()[name = string("W"), val = tensor<fp16, [6, 4, 1, 1]>(BLOBFILE(path = \
string("@model_path/weights/weight.bin"), offset = uint64(64)))];
        tensor<fp16, [1, 6, 1, 32]> y = conv(groups = c_groups, pad = c_pad, pad_type = c_pad_type, weight = W, x = x)\
[name = string("y")];
        tensor<fp16, [1, 6, 1, 32]> a, tensor<fp16, [1, 6, 1, 32]> b = split(x = y, num_splits = int32(2))[name = string("s")];
        tensor<fp16, [1, 6, 1, 32]> z = concat(values = (a, b, k), axis = int32(1), interleave = bool(false));
    } -> (z, y);
}
""",
    """program(1.0)
[buildInfo = dict<tensor<string, []>, tensor<string, []>>({{"coremlc-version", "3505.4.1"}})]
{
    func main<ios16>(tensor<fp16, [1, ?, ?]> x) [FlexibleShapeInformation = tuple<tuple<tensor<string, []>, \
dict<tensor<string, []>, tensor<int32, [?]>>>, tuple<tensor<string, []>, dict<tensor<string, []>, \
list<tensor<int32, [2]>, ?>>>>((("DefaultShapes", {{"x", [1, 1, 1]}}), ("RangeDims", {{"x", [[1, 1], [1, 2048]]}})))] {
            tensor<int32, [3]> p = const()[name = tensor<string, []>("p"), val = tensor<int32, [3]>([0, 2, 1])];
            tensor<fp16, [1, ?, ?]> y = transpose(perm = p, x = x)[name = tensor<string, []>("y")];
        } -> (y);
}""",
    """func one(bool p, state<tensor<fp16, [2]>> kv) { // states and blocks
        tensor<fp16, [2]> r = read_state(input = kv);
        tensor<fp16, [2]> y = cond(pred = p)[name = string("y\\n\\x41\\"")]
            then() { tensor<fp16, [2]> a = relu(x = r); } -> (a)
            other(fp16 q) { write_state(input = kv, data = r); } -> (r);
        fp16 w = constexpr_affine_dequantize()[axis = int32(0), quantized_data = tensor<int8, [2, 2]>([[1, -2], [3, 4]]),
            scale = fp16(1e-06), zero_point = int8(0)];
    } -> (y);
    func two() { tensor<fp32, [3]> v = const()[val = tensor<fp32, [3]>([inf, -0x1p-149, nan])]; } -> (v);""",
    'func main(fp16 x) { fp16 y = f(x = x, a = true, b = "s", c = [1, 2], d = 0.5, e = list<int4, 2>([-8, 7])); } -> (y);',
    ('func m() { dict<string, uint64> d = const()[val = dict<string, uint64>({{"a", 18446744073709551615}})]; '
    'tuple<bf16, fp8e4m3fn> t = const()[val = tuple<bf16, fp8e4m3fn>((0.5, -2))]; tensor<string, [2]> s = '
    'const()[val = tensor<string, [2]>(["a", "b"])]; tensor<bool, [1, 1]> b = const()[val = tensor<bool, [1, 1]>([[true]])]; } -> ();'),
)  # fmt: skip

TOKENS = (
    "(", ")", "[", "]", "{", "}", "<", ">", ",", ";", "=", "->", '"', "\\", "\\x", "?", "/*", "*/", "//", "\n", " ", ".",
    "tensor<", "list<", "tuple<", "dict<", "state<", "fp16", "string", "int32(", "tensor<int32, [", "BLOBFILE(", "func ",
    "program(", "const()", "tensor<fp16, [1152921504606846976]>([1])", "9223372036854775808", "-1", "1e999999999",
    "0x1p+99999", "nan(0x7e01)", "inf", "true", "x = ", "0" * 500, "9" * 1001, "{{", "([", "\x00", "\ufeff", "é", "\ud800",
)  # fmt: skip


def fuzz(count: int, seed: int = 0, seeds: tuple[str, ...] = SEEDS) -> Counter:
    """Runs `count` inputs and counts how they ended; raises AssertionError, with the input, for a forbidden end."""
    ends: Counter = Counter()
    for text in mutations(seeds, TOKENS, count, seed):
        start = time.process_time()
        try:
            ends[_one(text)] += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}\nfor the input {text!r}") from error
        assert time.process_time() - start < LIMIT_S, f"{time.process_time() - start:.1f} s for the input {text!r}"
    return ends


def _one(text: str) -> str:
    try:
        program = parse(text)
    except MilSyntaxError as error:
        assert error.line >= 1
        assert error.column >= 1
        assert str(error).endswith("^")
        return "refused"
    for function in program.functions:
        assert len(function.ops) <= len(text)
    assert parse(to_text(program, APPLE)) == program
    try:
        check(program)
    except CompileError:
        return "read"
    return "well formed"


if __name__ == "__main__":
    count, seed = (int(arg) for arg in (*sys.argv[1:], 10_000, 0)[:2])
    begin = time.perf_counter()
    print(dict(fuzz(count, seed)), f"{time.perf_counter() - begin:.1f} s")
