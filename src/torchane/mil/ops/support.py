"""What several families of ops share: how shapes meet, how axes are counted, what dtypes are asked for.

A size of None is one that is not known before run time; it meets any size and spoils products.
"""

import math
from collections.abc import Iterable, Sequence

from torchane.errors import CompileError
from torchane.mil.types import BOOL, STRING, TensorType

Sizes = tuple[int | None, ...]
_LONGEST = 1 << 16  # a vector of sizes or axes beyond this is one of a damaged file


def broadcast(kind: str, *types: TensorType) -> Sizes:
    """The common shape of operands. Sizes of 1 stretch; an unknown size meets anything."""
    if all(type_.shape == types[0].shape for type_ in types):  # nearly always
        return types[0].shape
    rank = max(type_.rank for type_ in types)
    shape: list[int | None] = []
    for axis in range(-rank, 0):
        sizes = [type_.shape[axis] for type_ in types if type_.rank >= -axis]
        known = {size for size in sizes if size not in (1, None)}
        if len(known) > 1:
            shown = " and ".join(map(str, types))
            raise CompileError(f"{kind}: the shapes of {shown} do not broadcast: axis {axis} has {sorted(known)}.")
        shape.append(known.pop() if known else (None if None in sizes else 1))
    return tuple(shape)


def positive_axis(kind: str, axis: int, rank: int, what: str = "axis") -> int:
    """The axis counted from the front. Raises CompileError if a tensor of that rank lacks it."""
    if not -rank <= axis < rank:
        raise CompileError(f"{kind}: {what} {axis} for a tensor of rank {rank}; it runs from {-rank} to {rank - 1}.")
    return axis % rank


def positive_axes(kind: str, axes: Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """The axes counted from the front, sorted; None is every axis."""
    if axes is None:
        return tuple(range(rank))
    found = sorted(positive_axis(kind, axis, rank, "axes hold") for axis in axes)
    if len(set(found)) < len(found):
        raise CompileError(f"{kind}: axes {tuple(axes)} name an axis twice, for a tensor of rank {rank}.")
    return tuple(found)


def same_dtype(kind: str, **types: TensorType) -> None:
    """Raises CompileError unless all have one element type."""
    if len({type_.dtype for type_ in types.values()}) > 1:
        shown = " and ".join(f"{name} is {type_}" for name, type_ in types.items())
        raise CompileError(f"{kind}: {shown}; they must have one element type. Cast one of them.")


def require_float(kind: str, **types: TensorType | None) -> None:
    """Raises CompileError for an operand that is not of floats; None is an operand left out."""
    for name, type_ in types.items():
        if type_ is not None and not type_.dtype.is_float:
            raise CompileError(f"{kind}: {name} is {type_} and must hold floats. Cast it first.")


def require_numbers(kind: str, **types: TensorType) -> None:
    """Raises CompileError for an operand of bools or strings."""
    for name, type_ in types.items():
        if type_.dtype in (BOOL, STRING):
            raise CompileError(f"{kind}: {name} is {type_} and must hold numbers. Cast it first.")


def require_integer(kind: str, **types: TensorType) -> None:
    """Raises CompileError for an operand that does not hold integers (indices, lengths)."""
    for name, type_ in types.items():
        if not type_.dtype.is_integer:
            raise CompileError(f"{kind}: {name} is {type_} and must hold integers. Cast it first.")


def require_rank(kind: str, ranks: Iterable[int], **types: TensorType) -> None:
    """Raises CompileError for an operand whose rank is not among `ranks`."""
    allowed = tuple(ranks)
    for name, type_ in types.items():
        if type_.rank not in allowed:
            shown = f"{allowed[0]} to {allowed[-1]}" if len(allowed) > 2 else " or ".join(map(str, allowed))
            raise CompileError(f"{kind}: {name} is {type_}, of rank {type_.rank}; it takes rank {shown}.")


def require_shape(kind: str, shape: Sizes, **types: TensorType | None) -> None:
    """Raises CompileError for an operand of another shape; None is an operand left out."""
    for name, type_ in types.items():
        if type_ is not None and not fits(type_.shape, shape):
            shown = ", ".join("?" if size is None else str(size) for size in shape)
            raise CompileError(f"{kind}: {name} is {type_} and must have the shape [{shown}].")


def require_choice(kind: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raises CompileError for a string that is not one of `choices`."""
    if value not in choices:
        raise CompileError(f"{kind}: {name} is {value!r}; it must be one of {', '.join(choices)}.")


def require_length(kind: str, name: str, values: Sequence[object], count: int, why: str) -> None:
    """Raises CompileError unless there are `count` values."""
    if len(values) != count:
        raise CompileError(f"{kind}: {name} {tuple(values)} has {len(values)} entries and {why} asks for {count}.")


def known_length(kind: str, name: str, type_: TensorType) -> int:
    """How many entries a vector of run time has: its values are not known, its length must be."""
    if type_.rank != 1 or not type_.dtype.is_integer or type_.shape[0] is None or type_.shape[0] > _LONGEST:
        raise CompileError(
            f"{kind}: {name} is {type_}; it must be a vector of integers, of a known length up to {_LONGEST}."
        )
    return type_.shape[0]


def fits(a: Sizes, b: Sizes) -> bool:
    """Equal shapes, as far as they are known."""
    return len(a) == len(b) and all(x == y or None in (x, y) for x, y in zip(a, b))


def product(sizes: Sizes) -> int | None:
    """How many elements; None if a size is unknown."""
    return None if None in sizes else math.prod(sizes)  # type: ignore[arg-type]


def replaced(shape: Sizes, axis: int, *sizes: int | None) -> Sizes:
    """The shape with one axis replaced by others (or by none)."""
    axis %= len(shape)
    return (*shape[:axis], *sizes, *shape[axis + 1 :])
