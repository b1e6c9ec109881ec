"""Random programs of every op that the layout pass knows mean the same in rank 4, through legal ports."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import assert_legal, lowered_and_run

from torchane.abi.ports import PortLayout, port_layout
from torchane.errors import CompileError
from torchane.mil.build import Builder
from torchane.mil.ir import Program, Var

SIZES = (1, 1, 2, 3, 4, 8, 32)


def any_factors(draw, size: int, most: int) -> tuple[int, ...]:
    """Sizes whose product is `size`, ones among them."""
    found = []
    for _ in range(draw(st.integers(0, most - 1))):
        divisor = draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
        found.append(divisor)
        size //= divisor
    return (*found, size)


def any_shape(draw, most: int = 4) -> tuple[int, ...]:
    while True:
        shape = tuple(draw(st.lists(st.sampled_from(SIZES), min_size=0, max_size=most)))
        if math.prod(shape) <= 2048:
            return shape


def grow(draw, b: Builder, values: list[Var]) -> Var | None:
    """One more op on values that are there; None where the drawn op does not fit."""
    x = draw(st.sampled_from(values))
    rank = x.rank
    kind = draw(st.sampled_from((
        "unary", "scalar", "same", "constant", "reduce", "max", "softmax", "reshape", "transpose", "swap", "slice",
        "matmul", "matmul", "matmul", "linear", "concat", "pad", "stride", "unsqueeze",
    )))  # fmt: skip
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    axis = draw(st.integers(0, max(rank - 1, 0)))
    if kind == "unary":
        return getattr(b, draw(st.sampled_from(("tanh", "sigmoid", "abs", "identity"))))(x=x)
    if kind == "scalar":
        return b.mul(x=x, y=0.5) if draw(st.booleans()) else b.sub(x=1.0, y=x)
    if kind == "same":
        fits = []
        for y in values:
            try:
                if (
                    len(np.broadcast_shapes(x.shape, y.shape)) <= 4
                    and math.prod(np.broadcast_shapes(x.shape, y.shape)) <= 4096
                ):
                    fits.append(y)
            except ValueError:
                continue
        method = draw(st.sampled_from((b.add, b.sub, b.mul, b.maximum)))
        return method(x=x, y=draw(st.sampled_from(fits))) if fits else None
    if kind == "constant":
        shape = tuple(size if draw(st.booleans()) else 1 for size in x.shape)[draw(st.integers(0, rank)) :]
        return b.add(x=x, y=rng.standard_normal(shape).astype(np.float16))
    if kind in ("reduce", "max"):
        axes = (
            tuple(draw(st.lists(st.integers(-rank, rank - 1), min_size=1, unique_by=lambda a: a % rank)))
            if rank
            else ()
        )
        method = b.reduce_sum if kind == "reduce" else b.reduce_max
        return method(x=x, axes=axes or None, keep_dims=draw(st.booleans()))
    if kind == "reshape":
        return b.reshape(x=x, shape=any_factors(draw, x.type.size, 5))
    if kind == "transpose":
        return b.transpose(x=x, perm=tuple(draw(st.permutations(range(rank))))) if rank else None
    if kind == "unsqueeze":
        return b.expand_dims(x=x, axes=(axis,)) if rank < 5 else None
    if rank == 0:
        return None
    if kind == "softmax":
        return b.softmax(x=x, axis=axis)
    if kind == "slice":
        begin = tuple(draw(st.integers(0, size - 1)) for size in x.shape)
        size = tuple(draw(st.sampled_from((1, whole - start, -1))) for start, whole in zip(begin, x.shape))
        return b.slice_by_size(x=x, begin=begin, size=size)
    if kind == "stride":
        mask = tuple(i != axis for i in range(rank))
        squeeze = tuple(i == axis and draw(st.booleans()) for i in range(rank))
        return b.slice_by_index(
            x=x, begin=tuple(draw(st.integers(0, s - 1)) if i == axis else 0 for i, s in enumerate(x.shape)), end=x.shape,
            stride=tuple(2 if i == axis else 1 for i in range(rank)), begin_mask=mask, end_mask=mask, squeeze_mask=squeeze,
        )  # fmt: skip
    if kind == "pad":
        return b.pad(
            x=x, pad=tuple(draw(st.integers(0, 2)) for _ in range(2 * draw(st.integers(1, rank)))), constant_val=1.5
        )
    if kind == "concat":
        others = [
            y
            for y in values
            if y.rank == rank and all(i == axis or a == c for i, (a, c) in enumerate(zip(x.shape, y.shape)))
        ]
        return b.concat(values=(x, draw(st.sampled_from(others))), axis=axis)
    if rank < 2:
        return None
    if kind == "swap":
        return b.transpose(x=x, perm=(*range(rank - 2), rank - 1, rank - 2))
    if kind == "linear":
        k, out = x.shape[-1], draw(st.sampled_from((1, 5, 32)))
        flag = draw(st.booleans())
        w = rng.standard_normal((out, k) if flag else (k, out)).astype(np.float16)
        return b.matmul(x=x, y=w, transpose_y=flag)
    flag_x, flag_y = draw(st.booleans()), draw(st.booleans())
    fits = []
    for y in values:
        try:
            result = b.matmul(x=x, y=y, transpose_x=flag_x, transpose_y=flag_y)
        except CompileError:
            continue
        b.ops.pop()
        if result.rank <= 4 and result.type.size <= 4096:
            fits.append(y)
    return b.matmul(x=x, y=draw(st.sampled_from(fits)), transpose_x=flag_x, transpose_y=flag_y) if fits else None


@st.composite
def programs(draw) -> Program:
    b = Builder()
    values = [b.input(f"in{i}", any_shape(draw)) for i in range(draw(st.integers(1, 3)))]
    made: list[Var] = []
    for _ in range(draw(st.integers(1, 12))):
        value = grow(draw, b, values + made)
        if value is not None and value.rank <= 5:
            made.append(value)
    if not made:
        made.append(b.tanh(x=values[0]))
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    return b.program(b.mul(x=made[-1], y=0.5), *outputs)


def any_ports(draw, program: Program) -> dict[str, PortLayout | None]:
    """Layouts given for some ports, in any order of their axes, with any legal rows; None for others."""
    ports: dict[str, PortLayout | None] = {}
    for var in (*program.inputs, *program.outputs):
        order = tuple(draw(st.permutations([axis for axis, size in enumerate(var.shape) if size != 1])))
        ports[var.name] = port_layout(var.shape, order) if draw(st.booleans()) else None
    return ports


@st.composite
def programs_and_ports(draw):
    program = draw(programs())
    names = [var.name for var in (*program.inputs, *program.outputs)]
    return program, any_ports(draw, program), draw(st.lists(st.sampled_from(names), unique=True))


def holds(program: Program, ports, weights, multiple: int, **options: int) -> None:
    try:
        assert_legal(*lowered_and_run(program, ports, weights=weights, multiple=multiple, **options), multiple)
    except CompileError as error:
        assert "more than four separate axes" in str(error)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(programs())
def test_a_random_program_means_the_same_in_rank_4(program):
    holds(program, {}, (), 32)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(programs_and_ports())
def test_a_random_program_meets_the_layouts_that_it_is_given(found):
    program, ports, weights = found
    holds(program, ports, weights, 32)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(programs())
def test_a_random_program_has_wider_rows_for_chips_that_want_them(program):
    holds(program, {}, (), 64)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(programs_and_ports(), st.sampled_from((2, 4, 16)))
def test_a_random_program_means_the_same_where_a_chip_takes_few_rows(found, longest):
    program, ports, weights = found
    holds(program, ports, weights, 32, longest=longest)


@pytest.mark.long
@settings(max_examples=20_000, deadline=None)
@given(programs_and_ports())
def test_many_random_programs_mean_the_same_in_rank_4(found):
    program, ports, weights = found
    holds(program, ports, weights, 32)
