from dataclasses import replace

import pytest
from golden import main, moves, same_text
from hypothesis import given, settings
from hypothesis import strategies as st

from torchane import chips
from torchane.passes.split_sums import split_sums


def chip_that_sums(most: int) -> chips.Chip:
    portable = chips.load("portable")
    matmul = portable.op("matmul")
    conditions = tuple(replace(c, value=most) if c.rule == "inner_size_at_most" else c for c in matmul.conditions)
    return replace(portable, ops={**portable.ops, "matmul": replace(matmul, conditions=conditions)})


def product(x, y, out, turned=("false", "false")):
    return main(f"""(tensor<fp16, {x}> x, tensor<fp16, {y}> y) {{
        tensor<fp16, {out}> z = matmul(x = x, y = y, transpose_x = bool({turned[0]}), transpose_y = bool({turned[1]}));
    }} -> (z)""")


def test_a_long_sum_is_two_of_half_the_length():
    golden = """(tensor<fp16, [2, 12]> x, tensor<fp16, [12, 3]> y) {
        tensor<fp16, [2, 2, 6]> reshape = reshape(x = x, shape = tensor<int32, [3]>([2, 2, 6]));
        tensor<fp16, [2, 2, 6]> transpose = transpose(x = reshape, perm = tensor<int32, [3]>([1, 0, 2]));
        tensor<fp16, [2, 6, 3]> reshape_1 = reshape(x = y, shape = tensor<int32, [3]>([2, 6, 3]));
        tensor<fp16, [2, 2, 3]> matmul = matmul(x = transpose, y = reshape_1, transpose_x = bool(false), transpose_y = bool(false));
        tensor<fp16, [1, 2, 3]> reduce_sum = reduce_sum(x = matmul, axes = tensor<int32, [1]>([0]), keep_dims = bool(true));
        tensor<fp16, [2, 3]> z = reshape(x = reduce_sum, shape = tensor<int32, [2]>([2, 3]));
    } -> (z);"""
    assert same_text(split_sums(product([2, 12], [12, 3], [2, 3]), chip_that_sums(6)), golden)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.sampled_from([8, 12, 15, 30, 64]), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(2, 9))
def test_the_parts_add_up_to_the_sum(m, k, n, turned_x, turned_y, most):
    x, y = ([k, m] if turned_x else [m, k]), ([n, k] if turned_y else [k, n])
    before = product(x, y, [m, n], tuple(str(turned).lower() for turned in (turned_x, turned_y)))
    after = split_sums(before, chip_that_sums(most))
    assert moves(before, after) < 1e-9
    lengths = [op.args["x"].type.shape[-2 if turned_x else -1] for op in after.ops if op.kind.name == "matmul"]
    assert lengths[0] <= most or after == before


@pytest.mark.parametrize(("x", "y", "out"), [([2, 6], [6, 3], [2, 3]), ([2, 23], [23, 3], [2, 3])])
def test_short_sums_and_those_without_a_small_divisor_stay(x, y, out):
    program = product(x, y, out)
    assert split_sums(program, chip_that_sums(6)) == program


@pytest.mark.parametrize("turned", [("false", "false"), ("false", "true"), ("true", "false")])
@pytest.mark.parametrize("before", [[2], [2, 3]])
def test_stacks_of_matrices_are_summed_in_parts(before, turned):
    x = [*before, *([12, 2] if turned[0] == "true" else [2, 12])]
    y = [*before, *([3, 12] if turned[1] == "true" else [12, 3])]
    program = product(x, y, [*before, 2, 3], turned)
    after = split_sums(program, chip_that_sums(6))
    assert moves(program, after) < 1e-9
    lengths = [op.args["x"].type.shape[-2 if turned[0] == "true" else -1] for op in after.ops if op.kind.name == "matmul"]
    assert lengths == [6]


def test_one_matrix_for_a_stack_stays():
    program = product([2, 2, 12], [12, 3], [2, 2, 3])
    assert split_sums(program, chip_that_sums(6)) == program


def test_without_a_chip_nothing_is_too_long():
    program = product([2, 40000], [40000, 3], [2, 3])
    assert split_sums(program) == program
    assert split_sums(program, chips.load("portable")) != program
