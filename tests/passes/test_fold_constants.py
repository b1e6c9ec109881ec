from importlib import import_module

import numpy as np
from golden import main, same_bits, same_text

from torchane.mil.build import Builder
from torchane.passes.fold_constants import fold_constants


def test_ops_on_constants_alone_become_constants():
    program = main("""(tensor<fp16, [2]> x) {
        fp16 a = mul(x = fp16(2), y = fp16(3));
        fp16 b = exp(x = a);
        tensor<fp16, [2]> z = add(x = x, y = b);
    } -> (z)""")
    golden = f"(tensor<fp16, [2]> x) {{ tensor<fp16, [2]> z = add(x = x, y = fp16({np.float16(np.exp(6))})); }} -> (z);"
    assert same_text(fold_constants(program), golden)
    assert same_bits(program, fold_constants(program))


def test_a_causal_mask_of_ranges_and_comparisons_folds():
    program = main("""(tensor<fp16, [3, 3]> x) {
        tensor<int32, [3]> i = range_1d(start = int32(0), end = int32(3), step = int32(1));
        tensor<int32, [3, 1]> row = expand_dims(x = i, axes = tensor<int32, [1]>([1]));
        tensor<bool, [3, 3]> hidden = greater(x = i, y = row);
        tensor<fp16, [3, 3]> mask = select(cond = hidden, a = fp16(-10000), b = fp16(0));
        tensor<fp16, [3, 3]> z = add(x = x, y = mask);
    } -> (z)""")
    after = fold_constants(program)
    assert [op.kind.name for op in after.ops] == ["add"]
    assert np.array_equal(after.ops[0].args["y"].value, np.triu(np.full((3, 3), -10000.0), 1))


def test_a_result_is_rounded_once():
    b = Builder()
    x = b.input("x", (2,))
    program = b.program(b.add(x=x, y=b.real_div(x=1.0, y=3.0)))
    assert fold_constants(program).ops[0].args["y"].value == np.float16(1 / 3)


def test_an_op_with_an_input_stays():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> z = mul(x = x, y = fp16(3)); } -> (z)")
    assert fold_constants(program) == program


def test_an_output_stays():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, []> z = mul(x = fp16(2), y = fp16(3)); } -> (z)")
    assert fold_constants(program) == program


def test_a_large_result_of_small_constants_stays(monkeypatch):
    monkeypatch.setattr(import_module("torchane.passes.fold_constants"), "MAX_ELEMENTS", 8)
    program = main("""(tensor<fp16, [9]> x) {
        tensor<fp16, [9]> a = fill(shape = tensor<int32, [1]>([9]), value = fp16(1));
        tensor<fp16, [9]> z = mul(x = x, y = a);
    } -> (z)""")
    assert fold_constants(program) == program
