"""Constant matrices kept in the order in which products read them fastest.

    conv weight (O, C), a row for each output  ──►  (C, O): neighbours are numbers that one step of the sum takes together
A product reads the other order, too, by turning blocks of 8 x 8 numbers in registers, at each run. The sums take their products in the same order:
the same bits.
"""

from collections.abc import Iterable

from torchane.runtime.twin.arrays import Array, TapeStep
from torchane.runtime.twin.schedule import Call


def turnable(constants: Iterable[Array]) -> dict[Array, tuple[int, int]]:
    """Constants that nothing but products read, by their rows, with the number of rows and columns."""
    found = {}
    for array in constants:
        shapes = {_rows_of(step, array) for step in array.root.readers}
        shape = shapes.pop() if len(shapes) == 1 else None
        if shape is not None and 1 not in shape:
            found[array] = shape
    return found


def turn(array: Array) -> None:
    """From now on its readers expect it with rows and columns exchanged."""
    for step in array.root.readers:
        _exchange(step, array)


def _rows_of(step: TapeStep, array: Array) -> tuple[int, int] | None:
    """(rows, columns) of a matrix whose rows lie along the sum of this product; None where it is read otherwise."""
    if not isinstance(step, Call) or step.method != "matmul" or sum(one.root is array.root for one in step.x) != 1:
        return None
    values = step.values
    is_left = step.x[0].root is array.root
    lies = not values["transpose_x"] if is_left else values["transpose_y"]
    shape = (values["m"] if is_left else values["n"], values["k"])
    strides = values["x_strides" if is_left else "y_strides"]
    is_alone = step.x[0 if is_left else 1].is_whole and array.size == shape[0] * shape[1] and not any(strides)
    return shape if lies and is_alone else None


def _exchange(step: TapeStep, array: Array) -> None:
    assert isinstance(step, Call), "only products were looked at"
    name = "transpose_x" if step.x[0].root is array.root else "transpose_y"
    step.values[name] = not step.values[name]
