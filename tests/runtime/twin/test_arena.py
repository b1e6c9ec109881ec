"""Scratch memory: what lives at once lies apart, what does not shares."""

from hypothesis import given
from hypothesis import strategies as st

from torchane.mil.build import Builder
from torchane.runtime.twin import load_program
from torchane.runtime.twin.arena import ALIGNMENT, place_scratch
from torchane.runtime.twin.arrays import Array, new
from torchane.runtime.twin.schedule import Call


def call(reads: tuple[Array, ...], out: Array) -> Call:
    return Call([], "copy", reads, out, {})


@given(st.lists(st.tuples(st.integers(1, 200), st.sets(st.integers(0, 30))), min_size=1, max_size=20))
def test_values_that_live_at_once_never_overlap(values: list[tuple[int, set[int]]]) -> None:
    arrays = [new((size,)) for size, _ in values]
    steps = []
    for index, (_, read) in enumerate(values):
        steps.append(call(tuple(arrays[r] for r in read if r < index), arrays[index]))
    size = place_scratch(steps)
    lives = [
        (index, max([index, *(later for later, (_, read) in enumerate(values) if index in read and later > index)]))
        for index in range(len(values))
    ]
    for i, (a, (first_a, last_a)) in enumerate(zip(arrays, lives)):
        assert a.root.offset % ALIGNMENT == 0
        assert a.root.offset + a.size <= size
        for b, (first_b, last_b) in zip(arrays[:i], lives[:i]):
            if first_a <= last_b and first_b <= last_a:
                assert a.root.offset + a.size <= b.root.offset or b.root.offset + b.size <= a.root.offset


def test_a_long_program_needs_the_memory_of_its_widest_moment() -> None:
    b = Builder()
    x = b.input("x", (64, 64))
    y = x
    for _ in range(20):
        y = b.matmul(x=y, y=x)
    assert load_program(b.program(y), "test").stats.scratch_bytes == 2 * 64 * 64 * 2
