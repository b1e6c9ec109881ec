"""Compute now what no input reaches.

    y = mul(x = fp16(2), y = fp16(3))
    z = add(x = x, y = y)             ->    z = add(x = x, y = fp16(6))
By the op's NumPy rule on exact values, in float64, rounded once to the type of the result: the bits of the
`exact` evaluator. A result of more than `MAX_ELEMENTS` is folded only if it is no larger than what it is
made from: a text does not grow into gigabytes of constants. An op whose result is an output stays.
"""

import numpy as np

from torchane.mil.ir import Arg, Literal, Op, Program, Var
from torchane.mil.types import TensorType

#: A causal mask for 2,048 tokens.
MAX_ELEMENTS = 1 << 22


def fold_constants(program: Program) -> Program:
    outputs = set(program.outputs)
    value: dict[Var, Literal] = {}
    kept: list[Op] = []
    for op in program.ops:
        op = op.reading(value)
        if _folds(op) and outputs.isdisjoint(op.outputs):
            results = op.kind.evaluate({name: _wide(op, name, arg) for name, arg in op.args.items()})
            for var, result in zip(op.outputs, results, strict=True):
                value[var] = _rounded(result, var.type)
        else:
            kept.append(op)
    return program.with_(ops=tuple(kept))


def _folds(op: Op) -> bool:
    if not op.args or op.blocks or op.inputs or not op.kind.has_rules or op.kind.name.startswith("random"):
        return False
    literals = [item for arg in op.args.values() for item in (arg if isinstance(arg, tuple) else (arg,))]
    if not all(isinstance(item.value, np.ndarray | str | tuple) for item in literals):
        return False
    if not all(isinstance(var.type, TensorType) and var.type.is_fixed for var in op.outputs):
        return False
    given = sum(item.value.size for item in literals if isinstance(item.value, np.ndarray))
    return sum(var.type.size for var in op.outputs) <= max(MAX_ELEMENTS, given)


def _wide(op: Op, name: str, arg: Arg) -> object:
    if isinstance(arg, tuple):
        return tuple(_wide(op, name, item) for item in arg)
    if name not in op.kind.operands:
        return arg.python()
    value = arg.value
    return value.astype(np.float64) if isinstance(value, np.ndarray) and arg.type.dtype.is_float else value


def _rounded(result: object, type_: TensorType) -> Literal:
    if isinstance(result, np.ndarray | np.generic):
        with np.errstate(over="ignore"):
            return Literal(type_, np.array(result).astype(type_.dtype.numpy).reshape(type_.shape))
    return Literal(type_, result)
