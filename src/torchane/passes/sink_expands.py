"""Broadcast as late as possible: most readers do it themselves.

    e = mul(x, ones)            # x (.., 1) made (.., n)
    d = real_div(e, 288)
    y = mul(d, z)               ->    y = mul(real_div(x, 288), z)
An element-wise op that reads a stretched value computes on the narrow one; where its own result must be wide
and is not, the stretching follows it. matmul takes narrow leading axes as they are. Same bits.
"""

import numpy as np

from torchane.mil.build import Builder
from torchane.mil.ir import Op, Program, Var, literal
from torchane.mil.ops.elementwise import mul
from torchane.mil.ops.support import broadcast
from torchane.mil.types import TensorType
from torchane.passes.rewrite import scalar

_BINARY = {"add", "sub", "mul", "real_div", "maximum", "minimum", "pow", "select"}
_UNARY = {
    "abs", "cast", "clip", "erf", "exp", "gelu", "inverse", "log", "relu", "rsqrt", "sigmoid", "silu", "sqrt", "square", "tanh",
}  # fmt: skip
_NEUTRAL = {"mul": 1.0, "real_div": 1.0, "add": 0.0, "sub": 0.0}


def sink_expands(program: Program) -> Program:
    b = Builder(program.names)
    outputs = set(program.outputs)
    narrow: dict[Var, Var] = {}
    for op in program.ops:
        stretched = _stretched(op)
        if stretched is not None:
            narrow[op.output] = narrow.get(stretched, stretched)
            b.ops.append(op)
        elif narrow.keys().isdisjoint(op.inputs):
            b.ops.append(op)
        elif op.kind.name == "matmul":
            b.ops.append(_with_narrow_batch(op, narrow))
        elif op.kind.name in _BINARY or op.kind.name in _UNARY:
            small = op.reading(narrow)
            types = [small.args[name].type for name in op.kind.operands if name in small.args]
            if broadcast(op.kind.name, *types) == op.output.shape:
                b.ops.append(small)
            elif op.output in outputs:
                b.ops.append(op)
            else:
                (narrow[op.output],) = b.emit(op.kind, dict(small.args), op.output.name)
                ones = literal(np.ones(op.output.shape), op.output.type.dtype)
                b.ops.append(Op(mul, {"x": narrow[op.output], "y": ones}, op.outputs, op.attrs))
        else:
            b.ops.append(op)
    return program.with_(ops=tuple(b.ops))


def _stretched(op: Op) -> Var | None:
    """What an op does nothing to but broadcast: x * 1, x + 0, or a tile along axes of one entry."""
    if len(op.outputs) != 1 or not isinstance(op.output.type, TensorType) or not op.output.type.dtype.is_float:
        return None
    x, y = op.args.get("x"), op.args.get("y")
    neutral = _NEUTRAL.get(op.kind.name)
    if neutral is not None:
        if op.kind.name in ("mul", "add") and scalar(x) == neutral:
            x, y = y, x
        if scalar(y) != neutral:
            return None
    elif op.kind.name != "tile" or any(
        reps != 1 and size != 1 for reps, size in zip(op.value("reps"), x.shape, strict=True)
    ):
        return None
    return x if isinstance(x, Var) and x.shape != op.output.shape else None


def _with_narrow_batch(op: Op, narrow: dict[Var, Var]) -> Op:
    """Each operand narrow if only its leading axes are, and the result has them anyway."""
    for name in ("x", "y"):
        wide = op.args[name]
        small = narrow.get(wide) if isinstance(wide, Var) else None
        if small is None or small.rank < 2 or small.shape[-2:] != wide.shape[-2:]:
            continue
        other = op.args["y" if name == "x" else "x"]
        batch = broadcast("matmul", TensorType(wide.type.dtype, small.shape[:-2]), TensorType(wide.type.dtype, other.type.shape[:-2]))
        if batch == op.output.shape[:-2]:
            op = Op(op.kind, {**op.args, name: small}, op.outputs, op.attrs)
    return op
