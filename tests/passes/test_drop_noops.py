import pytest
from golden import main, same_bits, same_text

from torchane.passes.drop_noops import drop_noops

NOOPS = [
    'cast(x = x, dtype = string("fp16"))',
    "reshape(x = x, shape = tensor<int32, [2]>([2, 4]))",
    "transpose(x = x, perm = tensor<int32, [2]>([0, 1]))",
    "transpose(x = x, perm = tensor<int32, [2]>([0, -1]))",
    "slice_by_size(x = x, begin = tensor<int32, [2]>([0, 0]), size = tensor<int32, [2]>([2, 4]))",
    "mul(x = x, y = fp16(1))",
    "mul(x = tensor<fp16, [2, 1]>([[1], [1]]), y = x)",
    "real_div(x = x, y = fp16(1))",
    "pow(x = x, y = fp16(1))",
    "add(x = fp16(0), y = x)",
    "sub(x = x, y = fp16(0))",
    "identity(x = x)",
    "concat(values = (x), axis = int32(0))",
    "squeeze(x = x, axes = tensor<int32, [0]>([]))",
]


@pytest.mark.parametrize("call", NOOPS)
def test_a_noop_goes_and_its_readers_read_what_it_read(call):
    program = main(f"(tensor<fp16, [2, 4]> x) {{ tensor<fp16, [2, 4]> y = {call}; tensor<fp16, [2, 4]> z = exp(x = y); }} -> (z)")
    golden = "(tensor<fp16, [2, 4]> x) { tensor<fp16, [2, 4]> z = exp(x = x); } -> (z);"
    assert same_text(drop_noops(program), golden)
    assert same_bits(program, drop_noops(program))


NEAR_MISSES = [
    "mul(x = x, y = fp16(0))",
    "mul(x = x, y = fp16(1.001))",
    "sub(x = fp16(0), y = x)",
    "real_div(x = fp16(1), y = x)",
    "add(x = x, y = tensor<fp16, [4]>([0, 0, 0, 1]))",
]


@pytest.mark.parametrize("call", NEAR_MISSES)
def test_what_does_change_something_stays(call):
    program = main(f"(tensor<fp16, [2, 4]> x) {{ tensor<fp16, [2, 4]> y = {call}; tensor<fp16, [2, 4]> z = exp(x = y); }} -> (z)")
    assert drop_noops(program) == program


def test_a_product_with_ones_that_broadcasts_stays():
    program = main("""(tensor<fp16, [2, 1]> x) {
        tensor<fp16, [2, 3]> y = mul(x = x, y = tensor<fp16, [1, 3]>([[1, 1, 1]]));
        tensor<fp16, [2, 3]> z = exp(x = y);
    } -> (z)""")
    assert drop_noops(program) == program


def test_a_square_transpose_stays():
    program = main("""(tensor<fp16, [2, 2]> x) {
        tensor<fp16, [2, 2]> y = transpose(x = x, perm = tensor<int32, [2]>([1, 0]));
        tensor<fp16, [2, 2]> z = exp(x = y);
    } -> (z)""")
    assert drop_noops(program) == program


def test_a_noop_that_is_an_output_keeps_its_name():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = exp(x = x); tensor<fp16, [2]> z = mul(x = y, y = fp16(1)); } -> (z)")
    golden = "(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = exp(x = x); tensor<fp16, [2]> z = identity(x = y); } -> (z);"
    assert same_text(drop_noops(program), golden)


def test_two_reshapes_become_one():
    program = main("""(tensor<fp16, [2, 6]> x) {
        tensor<fp16, [12]> a = reshape(x = x, shape = tensor<int32, [1]>([-1]));
        tensor<fp16, [3, 4]> b = reshape(x = a, shape = tensor<int32, [2]>([3, -1]));
        tensor<fp16, [3, 4]> z = exp(x = b);
    } -> (z, a)""")
    assert same_text(
        drop_noops(program),
        """(tensor<fp16, [2, 6]> x) {
        tensor<fp16, [12]> a = reshape(x = x, shape = tensor<int32, [1]>([-1]));
        tensor<fp16, [3, 4]> b = reshape(x = x, shape = tensor<int32, [2]>([3, 4]));
        tensor<fp16, [3, 4]> z = exp(x = b);
    } -> (z, a);""",
    )


def test_two_transposes_that_undo_each_other_go():
    program = main("""(tensor<fp16, [2, 3, 4]> x) {
        tensor<fp16, [4, 2, 3]> a = transpose(x = x, perm = tensor<int32, [3]>([2, 0, 1]));
        tensor<fp16, [2, 3, 4]> b = transpose(x = a, perm = tensor<int32, [3]>([1, 2, 0]));
        tensor<fp16, [2, 3, 4]> z = exp(x = b);
    } -> (z)""")
    after = drop_noops(program)
    assert after.ops[-1].inputs == after.inputs
    assert same_bits(program, after)


def test_two_transposes_that_do_not_become_one():
    program = main("""(tensor<fp16, [2, 3, 4]> x) {
        tensor<fp16, [4, 2, 3]> a = transpose(x = x, perm = tensor<int32, [3]>([2, 0, 1]));
        tensor<fp16, [3, 2, 4]> z = transpose(x = a, perm = tensor<int32, [3]>([2, 1, 0]));
    } -> (z)""")
    after = drop_noops(program)
    assert after.ops[-1].value("perm") == (1, 0, 2)
    assert same_bits(program, after)
