"""What the analysis of layouts decides about one op: in which order it reads what, and writes what."""

from collections.abc import Hashable, Iterator, Sequence, Set
from dataclasses import dataclass

from torchane.mil.ir import Literal, Op, Var
from torchane.passes.layout.order import Order

Tensor = Var | Literal

#: The order of each of `operands(op)`; None for a constant, which takes any.
Orders = Sequence[Order | None]


@dataclass(frozen=True)
class Way:
    """One way to run an op: the order in which it reads each of `operands(op)`, and the order of its result.

    `awkward` counts what costs no copy and is still better avoided: an operand that a matmul takes transposed. `copied`: bytes that the op
    reads beyond what it is there for, as moves do: a slice out of rows reads whole rows (lower_row_slices).
    """

    reads: tuple[Order, ...]
    writes: Order
    awkward: int = 0
    copied: int = 0


def operands(op: Op) -> tuple[Tensor, ...]:
    """The tensors that an op computes with, in the order of its kind's operands; constants too."""
    return tuple(tensor for _, tensor in keyed_operands(op))


def keyed_operands(op: Op) -> Iterator[tuple[str, Tensor]]:
    """`operands`, each with the argument that holds it; several share a key where one argument holds a tuple."""
    for key in op.kind.operands:
        arg = op.args.get(key)
        if arg is not None:
            yield from ((key, item) for item in (arg if isinstance(arg, tuple) else (arg,)))


def likeness(op: Op, weights: Set[Var]) -> Hashable:
    """All that the ways of an op depend on, names left out: equal for ops that have the same ways. Which operands are one
    value is part of it, since what is read twice in one order is moved once."""
    seen: dict[Var, int] = {}
    tensors = tuple(
        (key, tensor.type, seen.setdefault(tensor, len(seen)), tensor in weights) if isinstance(tensor, Var) else (key, tensor.type)
        for key, tensor in keyed_operands(op)
    )
    rest = tuple((key, arg) for key, arg in op.args.items() if key not in op.kind.operands)
    return op.kind.name, tensors, rest, op.output.type
