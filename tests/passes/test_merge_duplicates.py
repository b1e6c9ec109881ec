from golden import main, same_bits, same_text

from torchane.passes.merge_duplicates import merge_duplicates


def test_equal_ops_merge_and_so_do_their_readers():
    program = main("""(tensor<fp16, [2]> x) {
        tensor<fp16, [2]> a = exp(x = x);
        tensor<fp16, [2]> b = exp(x = x);
        tensor<fp16, [2]> c = mul(x = a, y = fp16(0.5));
        tensor<fp16, [2]> d = mul(x = fp16(0.5), y = b);
        tensor<fp16, [2]> z = add(x = c, y = d);
    } -> (z)""")
    assert same_text(
        merge_duplicates(program),
        """(tensor<fp16, [2]> x) {
        tensor<fp16, [2]> a = exp(x = x);
        tensor<fp16, [2]> c = mul(x = a, y = fp16(0.5));
        tensor<fp16, [2]> z = add(x = c, y = c);
    } -> (z);""",
    )
    assert same_bits(program, merge_duplicates(program))


def test_exchanged_operands_of_a_difference_do_not_merge():
    program = main("""(tensor<fp16, [2]> x, tensor<fp16, [2]> y) {
        tensor<fp16, [2]> a = sub(x = x, y = y);
        tensor<fp16, [2]> b = sub(x = y, y = x);
    } -> (a, b)""")
    assert merge_duplicates(program) == program


def test_zeros_of_different_sign_do_not_merge():
    program = main("""(tensor<fp16, [2]> x) {
        tensor<fp16, [2]> a = real_div(x = x, y = fp16(0.0));
        tensor<fp16, [2]> b = real_div(x = x, y = fp16(-0.0));
    } -> (a, b)""")
    assert merge_duplicates(program) == program


def test_of_two_equal_outputs_the_second_is_an_identity():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> a = exp(x = x); tensor<fp16, [2]> b = exp(x = x); } -> (a, b)")
    golden = "(tensor<fp16, [2]> x) { tensor<fp16, [2]> a = exp(x = x); tensor<fp16, [2]> b = identity(x = a); } -> (a, b);"
    assert same_text(merge_duplicates(program), golden)
