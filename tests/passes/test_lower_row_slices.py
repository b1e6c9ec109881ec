from golden import main, same_bits, same_text

from torchane import chips
from torchane.passes.lower_row_slices import lower_row_slices


def slice_of(begin, size):
    return main(f"""(tensor<fp16, [1, 2, 2, 4]> x) {{
        tensor<fp16, {size}> y = slice_by_size(x = x, begin = tensor<int32, [4]>({begin}), size = tensor<int32, [4]>({size}));
    }} -> (y)""")


def test_the_middle_of_a_row_is_a_product():
    program = slice_of([0, 0, 0, 1], [1, 2, 2, 2])
    golden = """(tensor<fp16, [1, 2, 2, 4]> x) {
        tensor<fp16, [1, 2, 2, 2]> y = matmul(x = x, y = tensor<fp16, [1, 1, 4, 2]>([[[[0, 0], [1, 0], [0, 1], [0, 0]]]]), transpose_x = bool(false), transpose_y = bool(false));
    } -> (y);"""
    assert same_text(lower_row_slices(program), golden)
    assert same_bits(program, lower_row_slices(program))


def test_other_axes_are_sliced_before():
    program = slice_of([0, 1, 0, 3], [1, 1, 2, 1])
    after = lower_row_slices(program)
    assert [op.kind.name for op in after.ops] == ["slice_by_size", "matmul"]
    assert after.ops[0].value("begin") == (0, 1, 0, 0)
    assert same_bits(program, after)


def test_a_long_row_is_turned_round_instead(monkeypatch):
    monkeypatch.setattr("torchane.passes.lower_row_slices.LONGEST_PRODUCT", 3)
    program = slice_of([0, 1, 0, 1], [1, 1, 2, 2])
    after = lower_row_slices(program)
    assert [op.kind.name for op in after.ops] == ["transpose", "slice_by_size", "transpose"]
    assert after.ops[1].value("begin") == (0, 1, 1, 0)
    assert same_bits(program, after)


def test_a_slice_that_begins_at_zero_and_one_of_another_axis_stay():
    for program in (slice_of([0, 0, 0, 0], [1, 2, 2, 2]), slice_of([0, 1, 1, 0], [1, 1, 1, 4])):
        assert lower_row_slices(program) == program


def test_a_chip_without_the_fault_keeps_its_slices():
    program = slice_of([0, 0, 0, 1], [1, 2, 2, 2])
    assert lower_row_slices(program, chips.load("m4")) == program
    assert lower_row_slices(program, chips.load("portable")) != program
