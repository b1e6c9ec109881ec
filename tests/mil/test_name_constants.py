from golden import main, same_bits, same_text

from torchane.mil.constants import inline_constants
from torchane.mil.name_constants import name_constants


def test_every_constant_gets_a_name_and_equal_ones_share_it():
    program = main("""(tensor<fp16, [2, 2]> x) {
        tensor<fp16, [2, 2]> a = matmul(x = x, y = x);
        tensor<fp16, [2, 2]> b = mul(x = a, y = fp16(0.5));
        tensor<fp16, [2, 2]> c = add(x = b, y = fp16(0.5));
    } -> (c)""")
    golden = """(tensor<fp16, [2, 2]> x) {
        bool transpose_x_0 = const()[val = bool(false)];
        tensor<fp16, [2, 2]> a = matmul(x = x, y = x, transpose_x = transpose_x_0, transpose_y = transpose_x_0);
        fp16 y_0 = const()[val = fp16(0.5)];
        tensor<fp16, [2, 2]> b = mul(x = a, y = y_0);
        tensor<fp16, [2, 2]> c = add(x = b, y = y_0);
    } -> (c);"""
    assert same_text(name_constants(program), golden)
    assert same_bits(program, name_constants(program))


def test_arguments_of_conv_that_were_left_out_are_written():
    program = main("""(tensor<fp16, [1, 2, 1, 4]> x) {
        tensor<fp16, [1, 1, 1, 4]> y = conv(x = x, weight = tensor<fp16, [1, 2, 1, 1]>([[[[1]], [[2]]]]));
    } -> (y)""")
    (conv,) = [op for op in name_constants(program).ops if op.kind.name == "conv"]
    assert set(conv.args) == {"x", "weight", "strides", "pad_type", "pad", "dilations", "groups"}


def test_a_reduction_of_all_axes_says_so():
    program = main("(tensor<fp16, [2, 3]> x) { tensor<fp16, []> y = reduce_sum(x = x); } -> (y)")
    golden = """(tensor<fp16, [2, 3]> x) {
        tensor<int32, [2]> axes_0 = const()[val = tensor<int32, [2]>([0, 1])];
        bool keep_dims_0 = const()[val = bool(false)];
        tensor<fp16, []> y = reduce_sum(x = x, axes = axes_0, keep_dims = keep_dims_0);
    } -> (y);"""
    assert same_text(name_constants(program), golden)


def test_equal_numbers_of_different_types_do_not_share():
    program = main("""(tensor<fp16, [1]> x) {
        tensor<fp16, [1]> a = add(x = x, y = fp16(1));
        tensor<fp16, [1]> b = add(x = a, y = tensor<fp16, [1]>([1]));
    } -> (b)""")
    consts = [op for op in name_constants(program).ops if op.kind.name == "const"]
    assert len(consts) == 2


def test_constants_that_have_names_keep_them_and_lend_them():
    program = main("""(tensor<fp16, [1]> x) {
        tensor<fp16, [1]> a = add(x = x, y = fp16(1));
        fp16 one = const()[val = fp16(1)];
        tensor<fp16, [1]> b = add(x = a, y = one);
    } -> (b)""")
    golden = """(tensor<fp16, [1]> x) {
        fp16 one = const()[val = fp16(1)];
        tensor<fp16, [1]> a = add(x = x, y = one);
        tensor<fp16, [1]> b = add(x = a, y = one);
    } -> (b);"""
    assert same_text(name_constants(program), golden)


def test_inlining_is_the_way_back():
    program = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = mul(x = x, y = fp16(0.5)); } -> (y)")
    assert inline_constants(name_constants(program)) == program
