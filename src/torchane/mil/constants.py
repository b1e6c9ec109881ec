"""Where constants stand: in statements of their own, in the arguments that read them, in files.

    string t = const()[val = string("fp16")];
    y = cast(dtype = t, x = x);                    ->    y = cast(dtype = string("fp16"), x = x);

Engines want the left form, rules and evaluators the right one. Both mean the same, to the bit.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from torchane.errors import ParseError
from torchane.mil.blobs import BlobFile
from torchane.mil.build import arguments
from torchane.mil.ir import Arg, Blob, Literal, Op, Program, Var, walk
from torchane.mil.types import STRING, TensorType


def inline_constants(program: Program) -> Program:
    """Every `const` moves into the arguments that read it, in nested blocks too. A constant that is an
    output of a function or block stays: its name is needed there."""
    functions = []
    for function in program.functions:
        named = set(function.outputs).union(*(block.outputs for op in walk(function.ops) for block in op.blocks))
        functions.append(replace(function, ops=_inlined(function.ops, named, {})))
    return replace(program, functions=tuple(functions))


def _inlined(ops: Iterable[Op], named: set[Var], known: Mapping[Var, Literal]) -> tuple[Op, ...]:
    """named: outputs, whose constants stay; known: the constants that are defined around these ops."""
    values = dict(known)
    kept = []
    for op in ops:
        if op.kind.name == "const" and "val" in op.attrs and len(op.outputs) == 1:
            values[op.output] = op.attrs["val"]
            if op.output in named:
                kept.append(op)
            continue
        op = op.reading(values)
        if op.blocks:
            blocks = tuple(replace(block, ops=_inlined(block.ops, named, values)) for block in op.blocks)
            op = replace(op, blocks=blocks)
        kept.append(op)
    return tuple(kept)


def unpack_constants(program: Program) -> Program:
    """Every compressed constant in memory (`constexpr_` ops) becomes what it stands for, rounded once to its type, in the arguments that read
    it. Engines unpack so when they load a program."""
    functions = tuple(replace(function, ops=_unpacked(function.ops, set(function.outputs))) for function in program.functions)
    return replace(program, functions=functions)


def _unpacked(ops: Iterable[Op], named: set[Var]) -> tuple[Op, ...]:
    values: dict[Var, Literal] = {}
    kept = []
    for op in ops:
        op = op.reading(values)
        given = arguments(op)
        if op.kind.name.startswith("constexpr_") and op.kind.has_rules and named.isdisjoint(op.outputs) and _are_in_memory(given.values()):
            results = op.kind.evaluate({name: arg.value if name in op.kind.operands else arg.python() for name, arg in given.items()})  # type: ignore[union-attr]
            for var, result in zip(op.outputs, results, strict=True):
                dtype = var.type.dtype  # type: ignore[union-attr]
                values[var] = Literal(var.type, np.asarray(result).astype(dtype.numpy).reshape(var.shape))  # type: ignore[arg-type]
        else:
            kept.append(op)
    return tuple(kept)


def _are_in_memory(given: Iterable[Arg]) -> bool:
    return all(isinstance(arg, Literal) and not isinstance(arg.value, Blob) for arg in given)


def load_blobs(program: Program, resolver: Callable[[str], BlobFile]) -> Program:
    """Every constant that lies in a file becomes a read-only array over that file.

    resolver: the open file for a path as the program spells it. Raises ParseError where a record does not
    hold what the program declares.
    """
    return map_literals(program, lambda literal: _loaded(literal, resolver))


def _loaded(literal: Literal, resolver: Callable[[str], BlobFile]) -> Literal:
    if not isinstance(literal.value, Blob):
        return literal
    type_, blob = literal.type, literal.value
    if not isinstance(type_, TensorType) or not type_.is_fixed or type_.dtype is STRING:
        raise ParseError(f"{blob.path} at {blob.offset:,}: a {type_} cannot be read from a weight file.")
    array = resolver(blob.path).read_as(blob.offset, type_.dtype)
    if type_.dtype.bits < 8 and type_.size <= array.size:
        array = array[: type_.size]  # a record whose code has whole bytes says nothing of unused bits
    if array.size != type_.size:
        raise ParseError(
            f"{blob.path} at {blob.offset:,}: the record holds {array.size:,} values of {type_.dtype.mil_name} "
            f"and the program declares {type_}, {type_.size:,} values. The weights belong to another program."
        )
    return Literal(type_, array.reshape(type_.shape))  # type: ignore[arg-type]


def map_literals(program: Program, change: Callable[[Literal], Literal]) -> Program:
    """The program with every constant changed that an op holds, as an argument or an attribute; in nested blocks too."""
    functions = tuple(replace(function, ops=_mapped(function.ops, change)) for function in program.functions)
    return replace(program, functions=functions)


def _mapped(ops: Iterable[Op], change: Callable[[Literal], Literal]) -> tuple[Op, ...]:
    return tuple(
        replace(
            op,
            args={key: _mapped_arg(arg, change) for key, arg in op.args.items()},
            attrs={key: change(value) for key, value in op.attrs.items()},
            blocks=tuple(replace(block, ops=_mapped(block.ops, change)) for block in op.blocks),
        )
        for op in ops
    )


def _mapped_arg(arg: Arg, change: Callable[[Literal], Literal]) -> Arg:
    if isinstance(arg, tuple):
        return tuple(change(item) if isinstance(item, Literal) else item for item in arg)
    return change(arg) if isinstance(arg, Literal) else arg
