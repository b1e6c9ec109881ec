"""matmul in every order of its operands: what is taken as it lies, and with which flags."""

import itertools

import numpy as np
import pytest
from golden import main, text_of
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import count, lowered_and_run

from torchane.abi.ports import port_layout
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Program
from torchane.passes.layout import lower_layout
from torchane.passes.layout.matmul import MATMUL


def product(x, y, x_order, y_order, z_order, **flags):
    """The program of one product between ports in given orders; the batch is the axis in front."""
    b = Builder()
    z = b.matmul(x=b.input("x", x), y=b.input("y", y), name="z", **flags)
    ports = {"x": port_layout(x, x_order), "y": port_layout(y, y_order), "z": port_layout(z.shape, z_order)}
    lowered, _ = lowered_and_run(b.program(z), ports)
    return lowered


@pytest.mark.parametrize(
    ("x_order", "y_order", "z_order", "transpose_x", "transpose_y"),
    list(itertools.product([(0, 1), (1, 0)], [(0, 1), (1, 0)], [(0, 1), (1, 0)], [False, True], [False, True])),
)
def test_every_order_of_two_matrices_is_a_matter_of_flags(x_order, y_order, z_order, transpose_x, transpose_y):
    x = (64, 32) if transpose_x else (32, 64)
    y = (96, 64) if transpose_y else (64, 96)
    lowered = product(x, y, x_order, y_order, z_order, transpose_x=transpose_x, transpose_y=transpose_y)
    assert count(lowered, "transpose") == 0


def test_a_batch_is_taken_from_the_front_in_any_order_of_the_rest():
    for x_order, y_order, z_order in itertools.product([(0, 1, 2), (0, 2, 1)], repeat=3):
        assert count(product((4, 32, 64), (4, 64, 32), x_order, y_order, z_order), "transpose") == 0


def test_a_batch_that_is_not_in_front_is_moved():
    assert count(product((4, 32, 64), (4, 64, 32), (1, 0, 2), (0, 1, 2), (0, 1, 2)), "transpose") == 1


def test_two_batch_axes_may_lie_in_another_order_if_both_operands_agree():
    lowered = product((2, 3, 32, 64), (2, 3, 64, 32), (1, 0, 2, 3), (1, 0, 2, 3), (1, 0, 2, 3))
    assert count(lowered, "transpose") == 0


def test_axes_that_only_x_has_become_rows():
    lowered = product((2, 3, 32, 64), (64, 96), (3, 0, 1, 2), (1, 0), (3, 0, 1, 2))
    (op,) = [op for op in lowered.ops if op.kind.name == "matmul"]
    assert [var.shape for var in op.inputs] == [(1, 1, 96, 64), (1, 1, 64, 192)]


def test_axes_that_only_x_has_in_front_are_broadcast_over():
    lowered = product((3, 32, 64), (64, 96), (0, 2, 1), (0, 1), (0, 2, 1))
    assert count(lowered, "transpose") == 0
    (op,) = [op for op in lowered.ops if op.kind.name == "matmul"]
    assert sorted(var.shape for var in op.inputs) == [(1, 1, 64, 96), (1, 3, 64, 32)]


def test_rows_are_never_a_batch_of_vectors():
    b = Builder()
    z = b.matmul(x=b.input("x", (4, 8, 16)), y=b.input("y", (4, 16, 32)))
    op = b.ops[-1]
    for step in MATMUL.options(op, ((0, 1, 2), (2, 0, 1)), frozenset()):
        assert step.reads[1][0] == 0, z


@pytest.mark.parametrize(("x", "y"), [((1, 64), (64, 96)), ((32, 64), (64, 1)), ((32, 1), (1, 96)), ((1, 64), (64, 1))])
def test_vectors_are_matrices_of_one_row(x, y):
    b = Builder()
    lowered, _ = lowered_and_run(b.program(b.matmul(x=b.input("x", x), y=b.input("y", y))))
    assert count(lowered, "transpose") == 0


def test_a_constant_lies_as_the_product_likes_it():
    b = Builder()
    x = b.input("x", (32, 64))
    z = b.matmul(x=x, y=np.ones((96, 64), np.float16), transpose_y=True, name="z")
    ports = {"x": port_layout(x.shape, (1, 0)), "z": port_layout(z.shape, (1, 0))}
    lowered, _ = lowered_and_run(b.program(z), ports)
    (op,) = [op for op in lowered.ops if op.kind.name == "matmul"]
    assert not op.value("transpose_x") and not op.value("transpose_y")


def rows_of_products(program: Program) -> list[int]:
    return [op.output.shape[-2] for op in program.ops if op.kind.name == "matmul"]


def test_more_rows_than_a_chip_takes_are_a_batch_of_fewer():
    b = Builder()
    z = b.matmul(x=b.input("x", (3, 64, 32)), y=b.input("y", (32, 96)), name="z")
    ports = {"x": port_layout((3, 64, 32), (0, 1, 2)), "y": port_layout((32, 96), (0, 1)), "z": port_layout(z.shape, (0, 1, 2))}
    lowered, _ = lowered_and_run(b.program(z), ports, longest=100)
    assert text_of(lowered) == text_of(main("""(tensor<fp16, [1, 3, 64, 32]> x, tensor<fp16, [1, 32, 1, 96]> y) {
        tensor<fp16, [1, 2, 96, 32]> x_view = reshape(x = x, shape = tensor<int32, [4]>([1, 2, 96, 32]));
        tensor<fp16, [1, 1, 32, 96]> y_view = reshape(x = y, shape = tensor<int32, [4]>([1, 1, 32, 96]));
        tensor<fp16, [1, 2, 96, 96]> z_1 = matmul(x = x_view, y = y_view, transpose_x = bool(false), transpose_y = bool(false));
        tensor<fp16, [1, 3, 64, 96]> z = reshape(x = z_1, shape = tensor<int32, [4]>([1, 3, 64, 96]));
    } -> (z)"""))


@pytest.mark.parametrize(("rows", "longest", "wanted"), [(64, 64, 64), (65, 64, 13), (127, 64, 127), (96, 64, 48)])
def test_rows_are_as_few_pieces_as_divide_them_and_stay_where_none_does(rows, longest, wanted):
    b = Builder()
    z = b.matmul(x=b.input("x", (rows, 32)), y=np.ones((32, 96), np.float16), name="z")
    ports = {"x": port_layout((rows, 32), (0, 1)), "z": port_layout(z.shape, (0, 1))}
    assert rows_of_products(lowered_and_run(b.program(z), ports, longest=longest)[0]) == [wanted]


def test_rows_that_lie_last_stay():
    b = Builder()
    z = b.matmul(x=b.input("x", (192, 64)), y=b.input("y", (64, 96)), name="z")
    ports = {"x": port_layout((192, 64), (1, 0)), "y": port_layout((64, 96), (0, 1)), "z": port_layout(z.shape, (0, 1))}
    assert rows_of_products(lowered_and_run(b.program(z), ports, longest=100)[0]) == [192]


@st.composite
def products(draw) -> Program:
    """(batch, rows, k) @ (batch, k, columns), each operand with a batch of its own or none."""
    rows, k, columns, batch = (draw(st.sampled_from(sizes)) for sizes in ((12, 30, 64), (4, 32), (6, 32), (2, 3)))
    flag_x, flag_y = draw(st.booleans()), draw(st.booleans())
    lead = st.sampled_from(((), (batch,), (4, batch)))
    x = (*draw(lead), *((k, rows) if flag_x else (rows, k)))
    y = (*draw(lead), *((columns, k) if flag_y else (k, columns)))
    b = Builder()
    return b.program(b.matmul(x=b.input("x", x), y=b.input("y", y), transpose_x=flag_x, transpose_y=flag_y, name="z"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(products(), st.sampled_from((4, 6, 10, 32)))
def test_rows_in_pieces_have_the_bits_of_rows_in_one(program, longest):
    whole, layouts = lower_layout(program, {})
    pieces, layouts_of_pieces = lower_layout(program, {}, longest=longest)
    assert layouts == layouts_of_pieces
    rng = np.random.default_rng(0)
    stored = {var.name: layouts[var.name].stored(rng.standard_normal(var.shape).astype(np.float16)) for var in program.inputs}
    assert evaluate(whole, stored)["z"].tobytes() == evaluate(pieces, stored)["z"].tobytes()
