"""A program as the conditions look at it: ops with their constants in reach, in either form.

Emitted text names every constant (`const` ops); natural MIL has them inline. Conditions read both.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from torchane.mil.ir import Arg, Literal, Op, Program, Var
from torchane.mil.types import StateType, TensorType


class ProgramView:
    """One program's main function, its constants looked up once."""

    def __init__(self, program: Program):
        self.program = program
        self.constants: Mapping[Var, Literal] = {
            op.output: op.attrs["val"] for op in program.ops if op.kind.name == "const" and "val" in op.attrs
        }
        self.computing: tuple[Op, ...] = tuple(op for op in program.ops if op.kind.name != "const")

    def literal(self, arg: Arg | None) -> Literal | None:
        """The constant that an argument is or names; None for a value of run time."""
        if isinstance(arg, Literal):
            return arg
        return self.constants.get(arg) if isinstance(arg, Var) else None

    def is_constant(self, arg: Arg | None) -> bool:
        """A constant, or what is unpacked from constants when a program is loaded."""
        made = self.producer.get(arg) if isinstance(arg, Var) else None
        return self.literal(arg) is not None or (made is not None and made.kind.name.startswith("constexpr_"))

    def value(self, op: Op, name: str) -> object:
        """A constant argument as plain Python; the op's default where it is absent; None for a value of run time."""
        found = self.literal(op.args.get(name))
        if found is not None:
            return found.python()
        parameter = op.kind.signature.parameters.get(name)
        if name in op.args or parameter is None or parameter.default is parameter.empty:
            return None
        return parameter.default

    def uniform(self, arg: Arg | None) -> float | None:
        """The number that a constant in memory holds everywhere."""
        found = self.literal(arg)
        if found is None or not isinstance(found.value, np.ndarray) or found.value.size == 0:
            return None
        if found.value.dtype.kind != "f" or not (found.value == found.value.flat[0]).all():
            return None
        return float(found.value.flat[0])

    def operands(self, op: Op) -> tuple[tuple[str, Arg], ...]:
        """The arguments that hold tensors: those that the kind calls operands, lists taken apart."""
        found: list[tuple[str, Arg]] = []
        for name, arg in op.args.items():
            if name in op.kind.operands:
                found.extend((name, item) for item in (arg if isinstance(arg, tuple) else (arg,)))
        return tuple(found)

    @cached_property
    def uses(self) -> Mapping[Var, tuple[Op, ...]]:
        return self.program.main.uses

    @cached_property
    def producer(self) -> Mapping[Var, Op]:
        return self.program.main.producer

    @cached_property
    def depth(self) -> int:
        """The longest chain of ops that compute, views (reshape, identity) not counted."""
        depth: dict[Var, int] = {}
        for op in self.computing:
            step = 0 if op.kind.name in ("reshape", "identity") else 1
            reached = step + max((depth.get(var, 0) for var in op.inputs), default=0)
            depth.update((var, reached) for var in op.outputs)
        return max(depth.values(), default=0)


def shape_of(arg: Arg) -> tuple[int | None, ...]:
    """The shape of a tensor argument, or of the tensor that a state holds; () for anything else."""
    if not isinstance(arg, Var | Literal):
        return ()
    type_ = arg.type.tensor if isinstance(arg.type, StateType) else arg.type
    return type_.shape if isinstance(type_, TensorType) else ()
