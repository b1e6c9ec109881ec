from golden import main, same_bits, same_text

from torchane.passes.drop_dead import drop_dead
from torchane.passes.sink_expands import sink_expands

ONES = "tensor<fp16, [1, 3]>([[1, 1, 1]])"


def test_a_stretched_factor_is_read_as_it_was():
    program = main(f"""(tensor<fp16, [2, 1]> x, tensor<fp16, [2, 3]> w) {{
        tensor<fp16, [2, 3]> e = mul(x = x, y = {ONES});
        tensor<fp16, [2, 3]> d = real_div(x = e, y = fp16(3));
        tensor<fp16, [2, 3]> z = mul(x = d, y = w);
    }} -> (z)""")
    golden = """(tensor<fp16, [2, 1]> x, tensor<fp16, [2, 3]> w) {
        tensor<fp16, [2, 1]> d_1 = real_div(x = x, y = fp16(3));
        tensor<fp16, [2, 3]> z = mul(x = d_1, y = w);
    } -> (z);"""
    assert same_text(drop_dead(sink_expands(program)), golden)
    assert same_bits(program, sink_expands(program))


def test_a_stretched_output_stays_stretched():
    program = main(f"""(tensor<fp16, [2, 1]> x) {{
        tensor<fp16, [2, 3]> e = mul(x = x, y = {ONES});
        tensor<fp16, [2, 3]> z = exp(x = e);
    }} -> (z)""")
    assert sink_expands(program) == program


def test_a_reader_that_needs_the_wide_value_keeps_it():
    program = main(f"""(tensor<fp16, [2, 1]> x) {{
        tensor<fp16, [2, 3]> e = mul(x = x, y = {ONES});
        tensor<fp16, [6]> z = reshape(x = e, shape = tensor<int32, [1]>([6]));
    }} -> (z)""")
    assert sink_expands(program) == program


def test_matmul_takes_narrow_leading_axes():
    program = main("""(tensor<fp16, [1, 2, 3]> x, tensor<fp16, [4, 3, 2]> y) {
        tensor<fp16, [4, 2, 3]> e = tile(x = x, reps = tensor<int32, [3]>([4, 1, 1]));
        tensor<fp16, [4, 2, 2]> z = matmul(x = e, y = y);
    } -> (z)""")
    after = drop_dead(sink_expands(program))
    assert [op.kind.name for op in after.ops] == ["matmul"]
    assert same_bits(program, after)


def test_matmul_keeps_a_stretched_matrix():
    program = main("""(tensor<fp16, [4, 1, 3]> x, tensor<fp16, [4, 3, 2]> y) {
        tensor<fp16, [4, 2, 3]> e = tile(x = x, reps = tensor<int32, [3]>([1, 2, 1]));
        tensor<fp16, [4, 2, 2]> z = matmul(x = e, y = y);
    } -> (z)""")
    assert sink_expands(program) == program
