import pytest
from golden import main, same_bits, same_text

from torchane.passes.decompose_moves import RULES, decompose_moves
from torchane.passes.lower_selections import lower_selections

X = "(tensor<fp16, [2, 3, 4]> x)"
CALLS = {
    "expand_dims(x = x, axes = tensor<int32, [2]>([0, 2]))": [1, 2, 1, 3, 4],
    "flatten2d(x = x, axis = int32(1))": [2, 12],
    "tile(x = x, reps = tensor<int32, [3]>([1, 2, 3]))": [2, 6, 12],
    "reverse(x = x, axes = tensor<int32, [2]>([0, 2]))": [2, 3, 4],
    "reverse(x = x)": [2, 3, 4],
    "slice_by_index(x = x, begin = tensor<int32, [3]>([0, 1, 0]), end = tensor<int32, [3]>([2, 3, 3]))": [2, 2, 3],
    "slice_by_index(x = x, begin = tensor<int32, [3]>([0, -1, 3]), end = tensor<int32, [3]>([2, 3, -5]), "
    "stride = tensor<int32, [3]>([1, 1, -2]), end_mask = tensor<bool, [3]>([true, false, true]), "
    "squeeze_mask = tensor<bool, [3]>([false, true, false]))": [2, 2],
    "gather(x = x, indices = tensor<int32, [4]>([3, 0, 1, -1]), axis = int32(2))": [2, 3, 4],
    "gather(x = x, indices = tensor<int32, [2, 2]>([[1, 0], [0, 1]]), axis = int32(0))": [2, 2, 3, 4],
    "gather(x = x, indices = int32(1), axis = int32(1))": [2, 4],
    "pad(x = x, pad = tensor<int32, [6]>([1, 0, 0, 0, 2, 1]))": [3, 3, 7],
    "pad(x = x, pad = tensor<int32, [6]>([0, 0, 0, 0, 0, 0]))": [2, 3, 4],
    "pad(x = x, pad = tensor<int32, [4]>([1, 1, 0, 2]), constant_val = fp16(0.5))": [2, 5, 6],
}


def test_every_rule_is_tried():
    assert {call.split("(")[0] for call in CALLS} | {"squeeze", "split", "stack"} == set(RULES)


@pytest.mark.parametrize("call", CALLS)
def test_a_move_keeps_its_bits_and_needs_few_kinds_of_ops(call):
    program = main(f"{X} {{ tensor<fp16, {CALLS[call]}> y = {call}; }} -> (y)")
    after = decompose_moves(program)
    assert {op.kind.name for op in after.ops} <= {"reshape", "slice_by_size", "concat", "pad", "mul", "identity"}
    assert same_bits(program, after)
    lowered = lower_selections(after)
    assert not {op.kind.name for op in lowered.ops} & {"concat", "pad"}
    assert same_bits(program, lowered)


def test_a_split_is_slices():
    program = main("""(tensor<fp16, [2, 5]> x) {
        tensor<fp16, [2, 2]> a, tensor<fp16, [2, 3]> b = split(x = x, split_sizes = tensor<int32, [2]>([2, 3]), axis = int32(-1));
    } -> (a, b)""")
    golden = """(tensor<fp16, [2, 5]> x) {
        tensor<fp16, [2, 2]> a = slice_by_size(x = x, begin = tensor<int32, [2]>([0, 0]), size = tensor<int32, [2]>([2, 2]));
        tensor<fp16, [2, 3]> b = slice_by_size(x = x, begin = tensor<int32, [2]>([0, 2]), size = tensor<int32, [2]>([2, 3]));
    } -> (a, b);"""
    assert same_text(decompose_moves(program), golden)


def test_a_stack_is_a_join_of_reshapes():
    program = main("(tensor<fp16, [2]> x, tensor<fp16, [2]> y) { tensor<fp16, [2, 2]> z = stack(values = (x, y), axis = int32(1)); } -> (z)")
    after = decompose_moves(program)
    assert [op.kind.name for op in after.ops] == ["reshape", "reshape", "concat"]
    assert same_bits(program, after)


def test_a_squeeze_is_a_reshape():
    program = main("(tensor<fp16, [2, 1]> x) { tensor<fp16, [2]> y = squeeze(x = x, axes = tensor<int32, [1]>([-1])); } -> (y)")
    golden = "(tensor<fp16, [2, 1]> x) { tensor<fp16, [2]> y = reshape(x = x, shape = tensor<int32, [1]>([2])); } -> (y);"
    assert same_text(decompose_moves(program), golden)


@pytest.mark.parametrize(
    "call",
    [
        "pad(x = x, pad = tensor<int32, [2]>([1, 1]))",
        'pad(x = x, pad = tensor<int32, [2]>([1, 1]), mode = string("reflect"))',
        "slice_by_size(x = x, begin = tensor<int32, [1]>([1]), size = tensor<int32, [1]>([2]))",
    ],
)
def test_a_pad_of_one_axis_and_a_slice_stay(call):
    size = 6 if "pad" in call else 2
    program = main(f"(tensor<fp16, [4]> x) {{ tensor<fp16, [{size}]> y = {call}; }} -> (y)")
    assert decompose_moves(program) == program
