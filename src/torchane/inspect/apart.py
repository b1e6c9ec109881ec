"""Every constant in a statement of its own, as in all of Core ML's files.

    y = add(x = x, y = fp16(1))     ->     fp16 y_y = const()[val = fp16(1)]; y = add(x = x, y = y_y)
A constant stands before the op that reads it and is called after that op's result and the argument. Nested blocks and
every function are done; what already has a name keeps it. Same bits. (`mil.name_constants` does this for engines,
which want equal constants shared and defaults spelled out too.)
"""

from collections.abc import Iterable
from dataclasses import replace

from torchane.mil.ir import Arg, Function, Literal, Op, Program, Var, literal, walk
from torchane.mil.kinds import kind_of

_CONST = kind_of("const")


def constants_apart(program: Program) -> Program:
    """Returns a new Program without a constant among the arguments."""
    return replace(program, functions=tuple(map(_function, program.functions)))


def _function(function: Function) -> Function:
    taken = {var.name for var in function.inputs}
    for op in walk(function.ops):
        taken.update(var.name for var in op.outputs)
        taken.update(var.name for block in op.blocks for var in block.inputs)
    return replace(function, ops=_apart(function.ops, taken))


def _apart(ops: Iterable[Op], taken: set[str]) -> tuple[Op, ...]:
    """taken: names that are in use anywhere in the function; grows."""
    found: list[Op] = []
    for op in ops:
        args = {key: _named(op, key, arg, found, taken) for key, arg in op.args.items()}
        blocks = tuple(replace(block, ops=_apart(block.ops, taken)) for block in op.blocks)
        found.append(replace(op, args=args, blocks=blocks))
    return tuple(found)


def _named(op: Op, key: str, arg: Arg, found: list[Op], taken: set[str]) -> Arg:
    if isinstance(arg, tuple):
        return tuple(_named(op, f"{key}_{place}", item, found, taken) for place, item in enumerate(arg))
    if not isinstance(arg, Literal):
        return arg
    base = f"{op.outputs[0].name if op.outputs else op.kind.name}_{key}"
    name, count = base, 0
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken.add(name)
    var = Var(name, arg.type)
    found.append(Op(_CONST, {}, (var,), {"name": literal(name), "val": arg}))
    return var
