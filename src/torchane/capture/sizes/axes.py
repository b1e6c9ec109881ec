"""What lies along an axis, and what its padded rows hold.

    (4, s, 16) ── view(4*s, 16) ──► axes [4 s][16]      an axis is a product of factors, the slowest first
A factor whose size varies is filled up to its bucket. Its rows beyond the true size hold, for every place along the other axes,
    EDGE    what the last true row holds: they are computed as it is, so that they are finite where it is
    ZERO    zeros
    LOOSE   numbers that no true row holds, finite unless a row was cut off that is not
Values whose rows might be infinite or NaN there have no state: what makes them is refused.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from math import gcd
from typing import Any

import sympy
import torch
from torch import fx


class State(Enum):
    EDGE = "edge"
    ZERO = "zero"
    LOOSE = "loose"


@dataclass(frozen=True)
class Factor:
    """size: an int, or an expression of the sizes that vary."""

    size: Any
    state: State = State.EDGE

    @property
    def is_padded(self) -> bool:
        return not isinstance(self.size, int)


Axis = tuple[Factor, ...]


@dataclass(frozen=True)
class Value:
    """A value of the padded graph: the node that computes it at the bucket's sizes."""

    node: fx.Node
    axes: tuple[Axis, ...]
    dtype: torch.dtype

    @property
    def padded(self) -> tuple[int, ...]:
        """The axes with rows beyond the true size."""
        return tuple(i for i, axis in enumerate(self.axes) if is_padded(axis))

    def where(self, position: int, axis: Axis) -> "Value":
        return replace(self, axes=(*self.axes[:position], axis, *self.axes[position + 1 :]))


def is_padded(axis: Axis) -> bool:
    return any(factor.is_padded for factor in axis)


def expression_of(size: Any) -> Any:
    """A size as torch gives it: an int, or an expression."""
    if isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool):
        size = size.node.expr
    if isinstance(size, sympy.Integer):
        return int(size)
    return sympy.expand(size) if isinstance(size, sympy.Expr) else size


def size_of(axis: Axis) -> Any:
    product: Any = 1
    for factor in axis:
        product = product * factor.size
    return expression_of(product)


def are_equal(a: Any, b: Any) -> bool:
    return bool(sympy.expand(a - b) == 0)


def axis_of(size: Any, state: State = State.EDGE) -> Axis:
    """One factor; none for a size of 1."""
    size = expression_of(size)
    return () if isinstance(size, int) and size == 1 else (Factor(size, state),)


def tidied(factors: Iterable[Factor]) -> Axis:
    """Neighbours of fixed size are one factor."""
    found: list[Factor] = []
    for factor in factors:
        if not factor.is_padded and factor.size == 1:
            continue
        if found and not factor.is_padded and not found[-1].is_padded:
            found[-1] = Factor(found[-1].size * factor.size)
        else:
            found.append(factor)
    return tuple(found)


def with_state(axis: Axis, state: State) -> Axis:
    return tuple(replace(factor, state=state) if factor.is_padded else factor for factor in axis)


def is_alike(a: Axis, b: Axis) -> bool:
    """The same rows lie at the same places."""
    return len(a) == len(b) and all(are_equal(x.size, y.size) for x, y in zip(a, b, strict=True))


def regrouped(axes: Sequence[Axis], sizes: Sequence[Any]) -> tuple[Axis, ...] | None:
    """The axes of a view with these sizes; None where it cuts through rows that vary."""
    pending = [factor for axis in axes for factor in axis][::-1]
    made: list[Axis] = []
    for size in map(expression_of, sizes):
        group: list[Factor] = []
        left = size
        while not are_equal(left, 1):
            factor = pending.pop() if pending else None
            taken = None if factor is None else _taken(factor, left)
            if factor is None or taken is None:
                return None
            part, left = taken
            group.append(replace(factor, size=part))
            if not factor.is_padded and part != factor.size:
                pending.append(Factor(factor.size // part))
        made.append(tidied(group))
    return tuple(made) if not pending else None


def _taken(factor: Factor, wanted: Any) -> tuple[Any, Any] | None:
    """How much of a factor belongs to an axis that wants so much more, and what it wants then."""
    if factor.is_padded:
        quotient, rest = sympy.div(sympy.sympify(wanted), factor.size) if not isinstance(wanted, int) else (0, 1)
        return (factor.size, expression_of(quotient)) if rest == 0 else None
    number = wanted if isinstance(wanted, int) else _content(wanted)
    common = gcd(factor.size, number)
    if common != factor.size and common != wanted:
        return None
    return (common, expression_of(sympy.sympify(wanted) / common)) if common > 1 else None


def _content(expression: Any) -> int:
    """The largest number that divides every coefficient."""
    return int(sympy.Poly(expression, *sorted(expression.free_symbols, key=str)).content())


def joined(operands: Sequence[Sequence[Axis]]) -> tuple[tuple[Axis, ...], tuple[tuple[State, ...], ...]] | None:
    """Broadcast axes with EDGE, and with each padded factor the states of the operands that have it, axis by axis in the order of
    factors; None where rows of one are no rows of the other."""
    rank = max((len(axes) for axes in operands), default=0)
    made: list[Axis] = []
    states: list[tuple[State, ...]] = []
    for position in range(-rank, 0):
        there = [axes[position] for axes in operands if len(axes) >= -position and axes[position]]
        first = there[0] if there else ()
        if not all(is_alike(first, other) for other in there):
            return None
        made.append(with_state(first, State.EDGE))
        states += [tuple(axis[i].state for axis in there) for i, factor in enumerate(first) if factor.is_padded]
    return tuple(made), tuple(states)


def stated(axes: Sequence[Axis], states: Iterable[State]) -> tuple[Axis, ...]:
    """The axes with these states of their padded factors, in order."""
    following = iter(states)
    return tuple(tuple(replace(f, state=next(following)) if f.is_padded else f for f in axis) for axis in axes)
