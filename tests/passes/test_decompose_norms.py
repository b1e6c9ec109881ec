import pytest
from golden import main, moves, same_text

from torchane.passes.decompose_norms import decompose_norms
from torchane.passes.decompose_reductions import decompose_reductions

NORMS = [
    "layer_norm(x = x, axes = tensor<int32, [1]>([-1]), gamma = g, beta = b, epsilon = fp16(1e-5))",
    "layer_norm(x = x, axes = tensor<int32, [1]>([3]), gamma = g)",
    "layer_norm(x = x, axes = tensor<int32, [2]>([2, 3]))",
    "layer_norm(x = x)",
    "instance_norm(x = x, gamma = c, beta = c, epsilon = fp16(1e-3))",
    "instance_norm(x = x)",
    "l2_norm(x = x, epsilon = fp16(1e-4))",
    "batch_norm(x = x, mean = tensor<fp16, [3]>([1, 2, 3]), variance = tensor<fp16, [3]>([1, 2, 4]))",
    ("batch_norm(x = x, mean = tensor<fp16, [3]>([1, 2, 3]), variance = tensor<fp16, [3]>([1, 2, 4]), "
    "gamma = tensor<fp16, [3]>([2, 2, 3]), beta = tensor<fp16, [3]>([0, 1, 0]))"),
]
PARAMS = "(tensor<fp16, [2, 3, 4, 5]> x, tensor<fp16, [5]> g, tensor<fp16, [5]> b, tensor<fp16, [3]> c)"


@pytest.mark.parametrize("call", NORMS)
def test_a_norm_keeps_its_numbers(call):
    program = main(f"{PARAMS} {{ tensor<fp16, [2, 3, 4, 5]> y = {call}; }} -> (y)")
    after = decompose_norms(program)
    assert not {op.kind.name for op in after.ops} & {"layer_norm", "instance_norm", "batch_norm", "l2_norm"}
    # the constants of batch_norm, scale and shift, are rounded to fp16, values up to 6; so are epsilons left to defaults
    assert moves(program, after) < (8 * 2**-11 if "batch_norm" in call else 1e-6 if "epsilon" not in call else 1e-10)


def test_layer_norm_in_full():
    program = main("""(tensor<fp16, [2, 4]> x, tensor<fp16, [4]> g) {
        tensor<fp16, [2, 4]> y = layer_norm(x = x, axes = tensor<int32, [1]>([-1]), gamma = g, epsilon = fp16(0.5));
    } -> (y)""")
    golden = """(tensor<fp16, [2, 4]> x, tensor<fp16, [4]> g) {
        tensor<fp16, [2, 1]> reduce_mean = reduce_mean(x = x, axes = tensor<int32, [1]>([-1]), keep_dims = bool(true));
        tensor<fp16, [2, 4]> sub = sub(x = x, y = reduce_mean);
        tensor<fp16, [2, 4]> mul = mul(x = sub, y = sub);
        tensor<fp16, [2, 1]> reduce_mean_1 = reduce_mean(x = mul, axes = tensor<int32, [1]>([-1]), keep_dims = bool(true));
        tensor<fp16, [2, 1]> add = add(x = reduce_mean_1, y = fp16(0.5));
        tensor<fp16, [2, 1]> pow = pow(x = add, y = fp16(-0.5));
        tensor<fp16, [2, 4]> mul_1 = mul(x = sub, y = pow);
        tensor<fp16, [4]> reshape = reshape(x = g, shape = tensor<int32, [2]>([1, 4]));
        tensor<fp16, [2, 4]> y = mul(x = mul_1, y = reshape);
    } -> (y);""".replace("tensor<fp16, [4]> reshape", "tensor<fp16, [1, 4]> reshape")
    assert same_text(decompose_norms(program), golden)


def test_a_mean_by_itself_is_left_to_the_next_pass():
    program = main("""(tensor<fp16, [2, 4]> x) {
        tensor<fp16, [2]> y = reduce_mean(x = x, axes = tensor<int32, [1]>([-1]), keep_dims = bool(false));
    } -> (y)""")
    assert decompose_norms(program) == program
    assert decompose_reductions(program) != program
