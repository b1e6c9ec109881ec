"""Which ops share a chain, and how their operands are walked."""

from torchane.mil.build import Builder
from torchane.mil.ir import Program, Var
from torchane.runtime.twin import load_program
from torchane.runtime.twin.arrays import new
from torchane.runtime.twin.chain import LONGEST_ROW, Micro, chain_geometry
from torchane.runtime.twin.schedule import LONGEST_CHAIN


def steps(*outputs: Var, builder: Builder) -> int:
    """How many steps the program takes, the one that only counts names left out."""
    program: Program = builder.program(*outputs)
    return load_program(program, "test").tape.steps - 1


def test_dense_operands_make_one_long_row() -> None:
    x, y = new((1, 8, 4, 32)), new((1, 8, 4, 32))
    geometry = chain_geometry([Micro("add", "binary", "add", (x, y), new((1, 8, 4, 32)))])
    assert geometry is not None
    assert (geometry.sizes, geometry.row, geometry.whole_rows) == ((), 1024, False)


def test_a_number_per_channel_cuts_the_row_at_channels() -> None:
    x, gain = new((1, 8, 4, 32)), new((1, 8, 1, 1))
    geometry = chain_geometry([Micro("mul", "binary", "mul", (x, gain), new((1, 8, 4, 32)))])
    assert geometry is not None
    assert (geometry.sizes, geometry.row) == ((8,), 128)
    assert geometry.strides == (((128, 1), (1, 0)),)


def test_shapes_that_are_cut_alike_share_a_chain() -> None:
    b = Builder()
    y = b.exp(x=b.input("x", (96, 256)))
    assert steps(b.mul(x=b.reshape(x=y, shape=(8, 12, 256)), y=b.input("m", (12, 1))), builder=b) == 1


def test_shapes_that_cannot_be_cut_alike_do_not() -> None:
    b = Builder()
    y = b.mul(x=b.input("x", (6, 10)), y=b.input("g", (6, 1)))
    assert steps(b.mul(x=b.reshape(x=y, shape=(4, 15)), y=b.input("m", (4, 1))), builder=b) == 2


def test_a_row_and_its_sum_share_a_chain_and_a_column_does_not() -> None:
    for axis, wanted in ((-1, 1), (0, 3)):
        b = Builder()
        x = b.exp(x=b.input("x", (32, 64)))
        assert steps(b.sub(x=x, y=b.reduce_sum(x=x, axes=(axis,), keep_dims=True)), builder=b) == wanted


def test_a_chain_waits_for_an_operand_where_nothing_waits_for_it() -> None:
    b = Builder()
    x = b.input("x", (32, 32))
    gate = b.exp(x=x)
    product = b.matmul(x=x, y=x)
    assert steps(b.mul(x=gate, y=product), builder=b) == 2


def test_a_chain_does_not_wait_where_something_needs_it() -> None:
    b = Builder()
    x = b.input("x", (32, 32))
    gate = b.exp(x=x)
    product = b.matmul(x=gate, y=x)
    assert steps(b.mul(x=gate, y=product), builder=b) == 3


def test_a_part_of_a_chained_value_is_read_from_memory() -> None:
    b = Builder()
    y = b.exp(x=b.input("x", (8, 32)))
    assert steps(b.mul(x=b.slice_by_size(x=y, begin=(4, 0), size=(4, 32)), y=2.0), builder=b) == 2


def test_chains_and_rows_have_a_limit() -> None:
    b = Builder()
    y = b.input("x", (4, 32))
    for _ in range(LONGEST_CHAIN + 1):
        y = b.exp(x=y)
    assert steps(y, builder=b) == 2
    b = Builder()
    y = b.exp(x=b.input("x", (2, LONGEST_ROW * 2)))
    assert steps(b.softmax(x=y), builder=b) == 2
