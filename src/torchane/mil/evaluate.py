"""Runs a program in NumPy, op by op: slow, plain, and everyone's oracle.

`exact` is the arithmetic of the twin: each op computes on the exact values of its operands, wide
(float64), and its result is rounded once to the element type that the program gives it. `ideal` rounds
nothing: float64 from end to end, what the program means.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from torchane.errors import CompileError
from torchane.mil import ops as _ops  # noqa: F401  (fills the op table)
from torchane.mil.ir import Arg, Function, Literal, Op, Program, Var
from torchane.mil.types import TensorType


def evaluate(
    program: Program | Function, inputs: Mapping[str, np.ndarray], *, arithmetic: str = "exact"
) -> dict[str, np.ndarray]:
    """The outputs by name, in the dtypes of the program (float64 for floats if `ideal`).

    inputs: an array per input name, of the declared shape. Constants must be in memory: read a
    program with its weight files through `mil.load`.
    """
    function = program.main if isinstance(program, Program) else program
    values: dict[Var, Any] = {}
    for var in function.inputs:
        if var.name not in inputs:
            raise CompileError(f"{function.name}: no value for the input {var.name} ({var.type}).")
        given = np.asarray(inputs[var.name])
        if given.shape != var.shape:
            raise CompileError(f"{function.name}: the input {var.name} is {var.type} and was given {given.shape}.")
        values[var] = _stored(given, var, arithmetic)
    for op in function.ops:
        if op.kind.name == "const":
            values[op.output] = _constant(op.attrs["val"], op.output, arithmetic)
            continue
        results = op.kind.evaluate({key: _value(op, key, arg, values) for key, arg in op.args.items()})
        for var, result in zip(op.outputs, results, strict=True):
            values[var] = _stored(result, var, arithmetic)
    return {var.name: values[var] for var in function.outputs}


def _value(op: Op, key: str, arg: Arg, values: Mapping[Var, Any]) -> Any:
    """An operand as a wide array, or a constant argument as plain Python."""
    if isinstance(arg, tuple):
        return tuple(_value(op, key, item, values) for item in arg)
    value = values[arg] if isinstance(arg, Var) else _constant(arg, None, "exact")
    if key not in op.kind.operands:
        return value if not isinstance(value, np.ndarray) else Literal(arg.type, value).python()
    if isinstance(value, np.ndarray) and value.dtype in (np.float16, np.float32):
        return value.astype(np.float64)
    return value


def _constant(literal: Literal, var: Var | None, arithmetic: str) -> Any:
    if not isinstance(literal.value, np.ndarray | str):
        name = "a constant" if var is None else f"the constant {var.name}"
        raise CompileError(f"{name} is not in memory ({literal.value}). Load the program with its weights: mil.load(path).")
    return literal.value if var is None else _stored(literal.value, var, arithmetic)


def _stored(value: Any, var: Var, arithmetic: str) -> Any:
    if not isinstance(value, np.ndarray | np.generic) or not isinstance(var.type, TensorType):
        return value
    if var.type.dtype.is_float and arithmetic == "ideal":
        return np.asarray(value, np.float64)
    with np.errstate(over="ignore"):
        return np.asarray(value).astype(var.type.dtype.numpy)
