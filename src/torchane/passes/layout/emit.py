"""Writing the physical program: where each value lies, and how it is read in another order or view.

    natural value ──► (order, physical Var) ──read(order, shape)──► [transpose] ──► [reshape] ──► rank 4

A value is stored once. Reading it in another order emits one `transpose` (two where more than four runs of
axes move), in another view one `reshape`; either is emitted once and shared by all readers. Constants are
moved here and now instead, for nothing.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from torchane.mil.build import Builder
from torchane.mil.ir import Arg, Literal, Op, Var
from torchane.mil.types import TensorType
from torchane.passes.layout.order import Order, Shape, Shape4, natural, runs_between, sizes, steps_between
from torchane.passes.layout.ways import Orders, Tensor, Way, keyed_operands


class Emitter:
    """The physical program so far. longest: the most entries of an axis that is not the channels'."""

    def __init__(self, taken: list[str], longest: int = sys.maxsize):
        self.b = Builder(taken)
        self.longest = longest
        self._lying: dict[Var, tuple[Order, Var]] = {}
        self._made: dict[tuple[object, ...], Var] = {}
        self._viewed: dict[Var, Var] = {}
        self._ops_seen = 0

    def define(self, value: Var, order: Order, physical: Var) -> None:
        """Says where a natural value lies from now on."""
        assert physical.rank == 4 and physical.type.size == value.type.size, f"{value} cannot lie in {physical}"
        self._lying[value] = (order, physical)

    def stored(self, value: Var, order: Order) -> Var:
        """The value in an order, in whatever view it has there; emits a transpose if it lies in another."""
        lying, physical = self._lying[value]
        for following in steps_between(lying, order):
            runs, perm = runs_between(lying, following)
            lead = (1,) * (4 - len(runs))
            physical = self.view(physical, (*lead, *(_size(value.shape, run) for run in runs)))  # type: ignore[arg-type]
            perm = (*range(len(lead)), *(axis + len(lead) for axis in perm))
            physical = self._once("transpose", physical, perm=perm)
            lying = following
        return physical

    def read(self, tensor: Tensor, order: Order, shape: Shape4) -> Tensor:
        """The tensor in an order and a view."""
        if isinstance(tensor, Literal):
            moved = np.ascontiguousarray(_moved(tensor, order).reshape(shape))
            return Literal(TensorType(tensor.type.dtype, shape), moved)
        return self.view(self.stored(tensor, order), shape)

    def view(self, physical: Var, shape: Shape4) -> Var:
        return physical if physical.shape == shape else self._once("reshape", physical, shape=shape)

    def root(self, physical: Var) -> Var:
        """What a value is a mere view of: itself, unless a reshape made it."""
        for op in self.b.ops[self._ops_seen :]:
            if op.kind.name == "reshape" and op.inputs:
                self._viewed[op.output] = op.inputs[0]
        self._ops_seen = len(self.b.ops)
        while physical in self._viewed:
            physical = self._viewed[physical]
        return physical

    def emit(self, op: Op, reads: tuple[Arg, ...], **changed: object) -> Var:
        """The op on physical tensors (one per operand of `operands(op)`), its other arguments kept or changed."""
        args: dict[str, object] = {}
        for (key, _), tensor in zip(keyed_operands(op), reads, strict=True):
            args[key] = (*args.get(key, ()), tensor) if isinstance(op.args[key], tuple) else tensor
        rest = {key: arg for key, arg in op.args.items() if key not in args}
        return self.b.emit(op.kind, {**args, **rest, **changed}, op.output.name)[0]

    def _once(self, kind: str, physical: Var, **args: Shape) -> Var:
        """The result of a move, which is emitted the first time that it is asked for."""
        key = (kind, *args.values(), physical)
        if key not in self._made:
            self._made[key] = getattr(self.b, kind)(x=physical, name=f"{physical.name}_{_NOUN[kind]}", **args)
        return self._made[key]


_NOUN = {"reshape": "view", "transpose": "moved"}


@dataclass(frozen=True)
class Rule:
    """How a family of ops is laid out.

    options: the ways to run an op whose operands lie in the given orders; the last argument holds the values
    that are weights. emit: writes the op as a way says. backward: the orders in which the operands would have
    to lie for the result to be in an order without a move, None for an operand that has no say in it; absent
    where the op itself decides the order of its result.
    """

    options: Callable[[Op, Orders, frozenset[Var]], Iterator[Way]]
    emit: Callable[[Emitter, Op, Way], None]
    backward: Callable[[Op, Order], tuple[Order | None, ...]] | None = None


#: The most channels that a chip takes (GDE M1, chips/portable.toml); other axes of a product may be longer.
MOST_CHANNELS = 65536


def upright(view: Shape4) -> Shape4:
    """[1, 1, a, b], which a matmul leaves, as [1, a, 1, b]: channels on the axis of channels, as far as a chip has so many."""
    return (1, view[2], 1, view[3]) if view[:2] == (1, 1) and view[2] <= MOST_CHANNELS else view


def _size(shape: Shape, run: Order) -> int:
    return int(np.prod(sizes(shape, run)))


def _moved(constant: Literal, order: Order) -> np.ndarray:
    """The constant's elements in an order; axes of one entry are dropped."""
    assert isinstance(constant.value, np.ndarray), "constants are in memory while a program is lowered"
    bare = constant.value.reshape(sizes(constant.shape, natural(constant.shape)))
    place = {axis: index for index, axis in enumerate(natural(constant.shape))}
    return bare.transpose([place[axis] for axis in order])
