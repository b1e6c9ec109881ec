import numpy as np
import pytest
from golden import main, moves, same_bits, same_text
from hypothesis import given, settings
from hypothesis import strategies as st

from torchane import chips
from torchane.errors import CompileError
from torchane.mil.build import Builder
from torchane.passes.drop_dead import drop_dead
from torchane.passes.lower_selections import lower_selections


def kinds(program):
    return [op.kind.name for op in drop_dead(program).ops]


def test_the_rotation_of_rope_is_one_matmul():
    program = main("""(tensor<fp16, [2, 4]> x) {
        tensor<fp16, [2, 2]> a = slice_by_size(x = x, begin = tensor<int32, [2]>([0, 0]), size = tensor<int32, [2]>([2, 2]));
        tensor<fp16, [2, 2]> b = slice_by_size(x = x, begin = tensor<int32, [2]>([0, 2]), size = tensor<int32, [2]>([2, 2]));
        tensor<fp16, [2, 2]> c = mul(x = b, y = fp16(-1));
        tensor<fp16, [2, 4]> y = concat(values = (c, a), axis = int32(-1));
    } -> (y)""")
    golden = """(tensor<fp16, [2, 4]> x) {
        tensor<fp16, [2, 4]> y = matmul(x = x, y = tensor<fp16, [4, 4]>([[0, 0, 1, 0], [0, 0, 0, 1], [-1, 0, 0, 0], [0, -1, 0, 0]]), transpose_x = bool(false), transpose_y = bool(false));
    } -> (y);"""
    assert same_text(drop_dead(lower_selections(program)), golden)
    assert same_bits(program, lower_selections(program))


def test_the_gradient_of_the_rotation_is_one_matmul():
    program = main("""(tensor<fp16, [2, 3, 4]> g) {
        tensor<fp16, [2, 3, 2]> a = slice_by_size(x = g, begin = tensor<int32, [3]>([0, 0, 0]), size = tensor<int32, [3]>([2, 3, 2]));
        tensor<fp16, [2, 3, 2]> b = slice_by_size(x = g, begin = tensor<int32, [3]>([0, 0, 2]), size = tensor<int32, [3]>([2, 3, 2]));
        tensor<fp16, [2, 3, 2]> c = sub(x = fp16(0), y = a);
        tensor<fp16, [2, 3, 4]> d = pad(x = c, pad = tensor<int32, [6]>([0, 0, 0, 0, 2, 0]));
        tensor<fp16, [2, 3, 4]> e = pad(x = b, pad = tensor<int32, [2]>([0, 2]));
        tensor<fp16, [2, 3, 4]> y = add(x = d, y = e);
    } -> (y)""")
    assert kinds(lower_selections(program)) == ["matmul"]
    assert same_bits(program, lower_selections(program))


def test_joins_added_to_a_value_one_by_one_are_one_matmul():
    """How autograd adds what the two halves of a rotation give."""
    program = main("""(tensor<fp16, [2, 4]> g, tensor<fp16, [2, 4]> v) {
        tensor<fp16, [2, 2]> a = slice_by_size(x = g, begin = tensor<int32, [2]>([0, 0]), size = tensor<int32, [2]>([2, 2]));
        tensor<fp16, [2, 2]> b = slice_by_size(x = g, begin = tensor<int32, [2]>([0, 2]), size = tensor<int32, [2]>([2, 2]));
        tensor<fp16, [2, 4]> d = pad(x = b, pad = tensor<int32, [2]>([0, 2]));
        tensor<fp16, [2, 4]> s = add(x = v, y = d);
        tensor<fp16, [2, 2]> c = mul(x = a, y = fp16(-1));
        tensor<fp16, [2, 4]> e = pad(x = c, pad = tensor<int32, [2]>([2, 0]));
        tensor<fp16, [2, 4]> y = add(x = e, y = s);
    } -> (y)""")
    golden = """(tensor<fp16, [2, 4]> g, tensor<fp16, [2, 4]> v) {
        tensor<fp16, [2, 4]> matmul = matmul(x = g, y = tensor<fp16, [4, 4]>([[0, 0, -1, 0], [0, 0, 0, -1], [1, 0, 0, 0], [0, 1, 0, 0]]), transpose_x = bool(false), transpose_y = bool(false));
        tensor<fp16, [2, 4]> y = add(x = v, y = matmul);
    } -> (y);"""
    assert same_text(lower_selections(program), golden)
    assert same_bits(program, lower_selections(program))


def test_a_sum_with_one_join_that_others_read_keeps_it():
    program = main("""(tensor<fp16, [1, 2]> x, tensor<fp16, [1, 4]> v) {
        tensor<fp16, [1, 4]> a = pad(x = x, pad = tensor<int32, [2]>([0, 2]));
        tensor<fp16, [1, 4]> b = pad(x = x, pad = tensor<int32, [2]>([2, 0]));
        tensor<fp16, [1, 4]> s = add(x = v, y = a);
        tensor<fp16, [1, 4]> y = add(x = s, y = b);
    } -> (y, s)""")
    assert kinds(lower_selections(program)) == ["matmul", "add", "matmul", "add"]
    assert same_bits(program, lower_selections(program))


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_values_join_along_any_axis(axis):
    b = Builder()
    shapes = [tuple(n if a == axis else 2 for a in range(4)) for n in (1, 3, 2)]
    program = b.program(b.concat(values=[b.input("x", shape) for shape in shapes], axis=axis))
    after = lower_selections(program)
    assert "concat" not in kinds(after)
    assert kinds(after).count("matmul") == 3
    assert same_bits(program, after)


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [((64, 32), [(3, 2), (3, 1)]), ((96, 32, 64), [(2, 1), (6, 1), (3, 1)]), ((5, 5), [(2, 1), (2, 1)]), ((6, 4), [(5, 3), (5, 2)]), ((3, 4), [(7, 3), (7, 4)])],
)
def test_channels_of_images_join_in_blocks(counts, sizes):
    b = Builder()
    program = b.program(b.concat(values=[b.input("x", (2, count, 3, 4)) for count in counts], axis=1))
    after = drop_dead(lower_selections(program))
    matrices = [op.args["x"].shape for op in after.ops if op.kind.name == "matmul"]
    assert matrices == sizes
    assert same_bits(program, after)


def test_a_pad_and_a_sign_of_channels_move_in_blocks():
    b = Builder()
    x = b.input("x", (1, 8, 2, 2))
    program = b.program(b.pad(x=b.mul(x=x, y=-1.0), pad=(0, 0, 4, 12, 0, 0, 0, 0)))
    after = drop_dead(lower_selections(program))
    assert [op.args["x"].shape for op in after.ops if op.kind.name == "matmul"] == [(6, 2)]
    assert same_bits(program, after)


def test_channels_in_turn_move_one_by_one():
    b = Builder()
    program = b.program(b.concat(values=[b.input("x", (1, 4, 2, 2)), b.input("w", (1, 4, 2, 2))], axis=1, interleave=True))
    after = drop_dead(lower_selections(program))
    assert [op.args["x"].shape for op in after.ops if op.kind.name == "matmul"] == [(8, 4), (8, 4)]
    assert same_bits(program, after)


def test_vectors_join():
    program = main("(tensor<fp16, [2]> x, tensor<fp16, [3]> w) { tensor<fp16, [5]> y = concat(values = (x, w), axis = int32(0)); } -> (y)")
    assert same_bits(program, lower_selections(program))


def test_a_join_that_gives_a_value_back_is_that_value():
    program = main("""(tensor<fp16, [2, 5]> x) {
        tensor<fp16, [2, 2]> a = slice_by_size(x = x, begin = tensor<int32, [2]>([0, 0]), size = tensor<int32, [2]>([2, 2]));
        tensor<fp16, [2, 3]> b = slice_by_size(x = x, begin = tensor<int32, [2]>([0, 2]), size = tensor<int32, [2]>([2, 3]));
        tensor<fp16, [2, 5]> c = concat(values = (a, b), axis = int32(1));
        tensor<fp16, [2, 5]> y = exp(x = c);
    } -> (y)""")
    assert same_text(drop_dead(lower_selections(program)), "(tensor<fp16, [2, 5]> x) { tensor<fp16, [2, 5]> y = exp(x = x); } -> (y);")


def test_a_slice_of_a_join_is_a_slice():
    program = main("""(tensor<fp16, [2, 5]> x, tensor<fp16, [2, 5]> w) {
        tensor<fp16, [2, 10]> c = concat(values = (x, w), axis = int32(1));
        tensor<fp16, [2, 3]> y = slice_by_size(x = c, begin = tensor<int32, [2]>([0, 6]), size = tensor<int32, [2]>([2, 3]));
    } -> (y)""")
    golden = """(tensor<fp16, [2, 5]> x, tensor<fp16, [2, 5]> w) {
        tensor<fp16, [2, 3]> y = slice_by_size(x = w, begin = tensor<int32, [2]>([0, 1]), size = tensor<int32, [2]>([2, 3]));
    } -> (y);"""
    assert same_text(drop_dead(lower_selections(program)), golden)


def test_literal_parts_are_added():
    program = main("""(tensor<fp16, [1, 2]> x) {
        tensor<fp16, [1, 4]> y = concat(values = (x, tensor<fp16, [1, 2]>([[5, 6]])), axis = int32(1));
        tensor<fp16, [1, 4]> z = pad(x = x, pad = tensor<int32, [2]>([1, 1]), constant_val = fp16(-3));
    } -> (y, z)""")
    assert kinds(lower_selections(program)) == ["matmul", "add", "matmul", "add"]
    assert same_bits(program, lower_selections(program))


def test_parts_that_overlap_are_added_after():
    program = main("""(tensor<fp16, [1, 2]> x, tensor<fp16, [1, 3]> w) {
        tensor<fp16, [1, 4]> a = pad(x = x, pad = tensor<int32, [2]>([0, 2]));
        tensor<fp16, [1, 4]> b = pad(x = w, pad = tensor<int32, [2]>([1, 0]));
        tensor<fp16, [1, 4]> y = add(x = a, y = b);
    } -> (y)""")
    assert kinds(lower_selections(program)) == ["matmul", "matmul", "add"]
    assert same_bits(program, lower_selections(program))


def test_slices_that_nothing_joins_stay():
    program = main("""(tensor<fp16, [2, 4]> x) {
        tensor<fp16, [2, 2]> a = slice_by_size(x = x, begin = tensor<int32, [2]>([0, 1]), size = tensor<int32, [2]>([2, 2]));
        tensor<fp16, [2, 2]> b = mul(x = a, y = fp16(-1));
        tensor<fp16, [2, 2]> y = add(x = a, y = b);
    } -> (y)""")
    assert lower_selections(program) == program


def test_a_chip_that_takes_joins_keeps_them():
    program = main("(tensor<fp16, [1, 2]> x) { tensor<fp16, [1, 4]> y = concat(values = (x, x), axis = int32(1)); } -> (y)")
    assert lower_selections(program, chips.load("portable")) != program


def test_a_join_over_a_vocabulary_is_refused_by_name():
    b = Builder()
    x = b.input("logits", (2, 32000))
    program = b.program(b.concat(values=[x, x], axis=1))
    with pytest.raises(CompileError, match=r"logits tensor<fp16, \[2, 32000\]>: joining along axis 1 to 64000 entries"):
        lower_selections(program)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_mix_of_slices_joins_pads_and_signs_keeps_its_bits(data):
    axis, rank = data.draw(st.integers(0, 2)), 3
    b = Builder()
    values = [b.input("x", (2, 3, 4)), b.input("w", (2, 3, 4))]
    for _ in range(data.draw(st.integers(1, 8))):
        x = data.draw(st.sampled_from(values))
        kind = data.draw(st.sampled_from(["slice", "concat", "pad", "negate", "add", "other axis"]))
        if kind == "slice":
            start = data.draw(st.integers(0, x.shape[axis] - 1))
            count = data.draw(st.integers(1, x.shape[axis] - start))
            begin = [start if a == axis else 0 for a in range(rank)]
            values.append(b.slice_by_size(x=x, begin=begin, size=[count if a == axis else n for a, n in enumerate(x.shape)]))
        elif kind == "concat":
            others = [v for v in values if all(v.shape[a] == x.shape[a] for a in range(rank) if a != axis)]
            parts = data.draw(st.lists(st.sampled_from(others), min_size=1, max_size=3))
            interleave = len({part.shape for part in parts}) == 1 and data.draw(st.booleans())
            if sum(part.shape[axis] for part in parts) < 40:
                values.append(b.concat(values=parts, axis=axis, interleave=interleave))
        elif kind == "pad":
            pad = [0] * 6
            pad[2 * axis : 2 * axis + 2] = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
            if any(pad):
                values.append(b.pad(x=x, pad=pad))
        elif kind == "negate":
            values.append(b.mul(x=x, y=-1.0))
        elif kind == "add":
            values.append(b.add(x=x, y=data.draw(st.sampled_from([v for v in values if v.shape == x.shape]))))
        else:
            other = (axis + 1) % rank
            values.append(b.concat(values=[x, x], axis=other))
            if values[-1].shape[other] > 16:
                values.pop()
    outputs = [v for v in values[2:] if v in {op.output for op in b.ops}][-2:]
    program = b.program(*(outputs or [b.exp(x=values[0])]))
    after = drop_dead(lower_selections(program))
    assert not {"concat", "pad"} & set(kinds(after))
    assert moves(program, after) == 0.0


def test_a_deep_chain_of_joins_takes_one_product():
    b = Builder()
    x = b.input("x", (1, 6))
    value = x
    for _ in range(50):
        left = b.slice_by_size(x=value, begin=(0, 0), size=(1, 3))
        right = b.slice_by_size(x=value, begin=(0, 3), size=(1, 3))
        value = b.concat(values=[b.mul(x=right, y=-1.0), left], axis=1)
    program = b.program(value)
    after = lower_selections(program)
    assert kinds(after) == ["matmul"]
    assert np.count_nonzero(drop_dead(after).ops[0].args["y"].value) == 6
    assert same_bits(program, after)
