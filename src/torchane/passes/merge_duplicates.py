"""Compute a value once.

    a = exp(x = x)
    b = exp(x = x)
    z = add(x = a, y = b)     ->    a = exp(x = x);  z = add(x = a, y = a)
`add` and `mul` also match with their operands exchanged. Of two equal outputs the second becomes an
`identity` of the first. Same bits.
"""

from collections.abc import Hashable

from torchane.mil.ir import Arg, Op, Program, Var, literal
from torchane.mil.ops.constant import identity

_SYMMETRIC = {"add", "mul", "maximum", "minimum"}

#: Equal text does not mean an equal value: they draw, read or write something outside the program.
_IMPURE = {"read_state", "write_state"}


def merge_duplicates(program: Program) -> Program:
    outputs = set(program.outputs)
    first: dict[Hashable, Op] = {}
    source: dict[Var, Var] = {}
    kept: list[Op] = []
    for op in program.ops:
        op = op.reading(source)
        if op.blocks or op.kind.name in _IMPURE or op.kind.name.startswith("random"):
            kept.append(op)
            continue
        twin = first.setdefault(_key(op), op)
        if twin is op:
            kept.append(op)
            continue
        for var, same in zip(op.outputs, twin.outputs, strict=True):
            if var in outputs:
                kept.append(Op(identity, {"x": same}, (var,), {"name": literal(var.name)}))
            source[var] = same
    return program.with_(ops=tuple(kept))


def _key(op: Op) -> Hashable:
    args: list[tuple[str, Arg]] = sorted(op.args.items())
    if op.kind.name in _SYMMETRIC:
        operands: Hashable = frozenset(arg for _, arg in args) if len(args) == 2 else tuple(args)
    else:
        operands = tuple(args)
    attrs = tuple((name, value) for name, value in op.attrs.items() if name != "name")
    return op.kind.name, operands, attrs, tuple(var.type for var in op.outputs)
