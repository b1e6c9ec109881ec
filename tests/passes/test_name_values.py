from golden import main, same_text

from torchane.passes.name_values import name_values


def test_ports_sort_and_inner_values_are_counted_by_kind():
    program = main("""(tensor<fp16, [2]> primals_12, tensor<fp16, [2]> view_3) {
        fp16 y_0 = const()[val = fp16(2)];
        tensor<fp16, [2]> t_7 = mul(x = primals_12, y = y_0);
        tensor<fp16, [2]> t_9 = mul(x = t_7, y = view_3);
        tensor<fp16, [2]> mul_4 = exp(x = t_9);
    } -> (mul_4, t_9)""")
    golden = """(tensor<fp16, [2]> a00_primals, tensor<fp16, [2]> a01_view) {
        fp16 y_0 = const()[val = fp16(2)];
        tensor<fp16, [2]> mul_0 = mul(x = a00_primals, y = y_0);
        tensor<fp16, [2]> z01_t = mul(x = mul_0, y = a01_view);
        tensor<fp16, [2]> z00_mul = exp(x = z01_t);
    } -> (z00_mul, z01_t);"""
    assert same_text(name_values(program), golden)


def test_a_layer_by_other_names_gives_the_same_program():
    def layer(x: str, y: str):
        return main(f"(tensor<fp16, [2]> {x}) {{ tensor<fp16, [2]> {y} = exp(x = {x}); }} -> ({y})")

    assert name_values(layer("primals_3", "exp_1")) == name_values(layer("primals_40", "exp_22"))


def test_a_hundred_ports_sort_as_they_are_declared():
    params = ", ".join(f"tensor<fp16, [1]> p{i}" for i in range(101))
    after = name_values(main(f"({params}) {{ tensor<fp16, [1]> y = add(x = p0, y = p100); }} -> (y)"))
    names = [var.name for var in after.inputs]
    assert names == sorted(names)
    assert names[0] == "a000_p"
