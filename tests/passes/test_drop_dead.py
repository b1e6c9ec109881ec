from golden import main, same_bits, same_text

from torchane.passes.drop_dead import drop_dead


def test_a_chain_that_nobody_reads_goes():
    program = main("""(tensor<fp16, [2]> x) {
        tensor<fp16, [2]> a = exp(x = x);
        tensor<fp16, [2]> b = mul(x = a, y = a);
        tensor<fp16, [2]> z = add(x = x, y = x);
    } -> (z)""")
    assert same_text(drop_dead(program), "(tensor<fp16, [2]> x) { tensor<fp16, [2]> z = add(x = x, y = x); } -> (z);")
    assert same_bits(program, drop_dead(program))


def test_what_an_output_reads_stays():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> a = exp(x = x); tensor<fp16, [2]> z = tanh(x = a); } -> (z)")
    assert drop_dead(program) == program


def test_one_used_part_of_a_split_keeps_it():
    program = main("""(tensor<fp16, [4]> x) {
        tensor<fp16, [2]> a, tensor<fp16, [2]> b = split(x = x, num_splits = int32(2), axis = int32(0));
    } -> (b)""")
    assert drop_dead(program) == program


def test_an_unread_input_stays():
    program = main("(tensor<fp16, [2]> x, tensor<fp16, [2]> w) { tensor<fp16, [2]> z = exp(x = x); } -> (z)")
    assert drop_dead(program).inputs == program.inputs
