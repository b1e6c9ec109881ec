"""Drop ops that change nothing, and joins of two moves that one move can do.

    y = cast(x, fp16)              # x is fp16        y = reshape(x) to its own shape
    y = transpose(x, [0, 1, 2])                       y = slice_by_size(x) of everything
    y = mul(x, 1)   real_div(x, 1)   pow(x, 1)        y = add(x, 0)   sub(x, 0)
    reshape(reshape(x)) -> reshape(x)                 transpose(transpose(x)) -> transpose(x)
Same bits, but for one: x + 0 keeps the sign of a negative zero that an addition would lose. `mul(x, 0)`
stays a mul. An output keeps its name by an `identity`, which `name_ports` places where chips want it.
"""

from torchane.mil.ir import Literal, Op, Program, Var, literal
from torchane.mil.ops.constant import identity
from torchane.mil.types import TensorType
from torchane.passes.rewrite import scalar

_NEUTRAL = {"mul": 1.0, "real_div": 1.0, "pow": 1.0, "add": 0.0, "sub": 0.0}
_SYMMETRIC = {"mul", "add"}


def drop_noops(program: Program) -> Program:
    outputs = set(program.outputs)
    source: dict[Var, Var] = {}
    made: dict[Var, Op] = {}
    kept: list[Op] = []
    for op in program.ops:
        op = _joined(op.reading(source), made)
        same = _unchanged(op)
        if same is None:
            kept.append(op)
            made.update((var, op) for var in op.outputs)
        elif op.output in outputs:
            kept.append(Op(identity, {"x": same}, op.outputs, {"name": literal(op.output.name)}))
        else:
            source[op.output] = same
    return program.with_(ops=tuple(kept))


def _unchanged(op: Op) -> Var | None:
    """The operand that the op's result is equal to."""
    kind = op.kind.name
    if len(op.outputs) != 1 or not isinstance(op.output.type, TensorType) or not op.output.type.is_fixed:
        return None
    x = op.args.get("x")
    if kind in _NEUTRAL:
        y = op.args.get("y")
        if kind in _SYMMETRIC and scalar(x) == _NEUTRAL[kind]:
            x, y = y, x
        return _if_same_type(x, op) if scalar(y) == _NEUTRAL[kind] else None
    if kind in ("cast", "reshape", "slice_by_size", "identity", "squeeze", "expand_dims"):
        return _if_same_type(x, op)
    if kind == "transpose":
        perm = op.value("perm")
        return _if_same_type(x, op) if [axis % len(perm) for axis in perm] == list(range(len(perm))) else None
    if kind in ("reduce_sum", "reduce_max", "reduce_mean", "reduce_min"):
        return _if_same_type(x, op)  # sizes of 1 reduced, kept
    if kind == "concat" and len(op.args["values"]) == 1:
        return _if_same_type(op.args["values"][0], op)
    return None


def _if_same_type(x: object, op: Op) -> Var | None:
    return x if isinstance(x, Var) and x.type == op.output.type else None


def _joined(op: Op, made: dict[Var, Op]) -> Op:
    """A move that reads a move of the same kind reads what that one read instead."""
    kind = op.kind.name
    x = op.args.get("x")
    before = made.get(x) if isinstance(x, Var) else None
    if before is None or before.kind.name != kind or not isinstance(before.args["x"], Var):
        return op
    if kind == "reshape" and op.output.type.is_fixed and isinstance(op.args["shape"], Literal):
        return _with(op, x=before.args["x"], shape=literal(op.output.shape))
    if kind == "transpose":
        first, then = before.value("perm"), op.value("perm")
        return _with(op, x=before.args["x"], perm=literal(tuple(first[axis] % len(first) for axis in then)))
    if kind == "identity":
        return _with(op, x=before.args["x"])
    return op


def _with(op: Op, **args: object) -> Op:
    return Op(op.kind, {**op.args, **args}, op.outputs, op.attrs, op.blocks)
