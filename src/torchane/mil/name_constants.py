"""Give every constant a name and a type, and write every optional argument.

    y = matmul(x = x, y = w)      ->    bool transpose_x_0 = const()[val = bool(false)]; ...
                                        y = matmul(x = x, y = w, transpose_x = transpose_x_0, transpose_y = transpose_x_0)
Engines' compilers take literals as arguments on some routes only and do not agree on defaults
(mil-text.md, section 2). A constant is named after the argument that first reads it, stands before that op, and
is shared by all that are equal. Same bits.
"""

from torchane.mil.build import Builder
from torchane.mil.ir import Arg, Literal, Op, Program, Var, literal
from torchane.mil.ops.constant import const


def name_constants(program: Program) -> Program:
    b = Builder(program.names)
    named: dict[Literal, Var] = {op.attrs["val"]: op.output for op in program.ops if op.kind.name == "const"}
    placed: set[Literal] = set()

    def name(argument: str, value: Arg) -> Arg:
        if isinstance(value, tuple):
            return tuple(name(argument, item) for item in value)
        if isinstance(value, Var):
            return value
        if value not in placed:
            placed.add(value)
            if value not in named:
                named[value] = Var(b.fresh(f"{argument}_0"), value.type)
            label = literal(named[value].name)
            b.ops.append(Op(const, {}, (named[value],), {"name": label, "val": value}))
        return named[value]

    for op in program.ops:
        if op.kind.name == "const":
            name("value", op.attrs["val"])
            continue
        args = {**op.args, **_left_out(op)}
        b.ops.append(Op(op.kind, {key: name(key, arg) for key, arg in args.items()}, op.outputs, op.attrs, op.blocks))
    return program.with_(ops=tuple(b.ops))


def _left_out(op: Op) -> dict[str, Literal]:
    """The constant arguments that the op does without, with the values that they then have."""
    found: dict[str, Literal] = {}
    for key, parameter in op.kind.signature.parameters.items():
        if key in op.args or key in op.kind.operands or parameter.default is parameter.empty:
            continue
        default = parameter.default
        if default is None:
            default = _implied(op, key)
        if isinstance(default, float):
            found[key] = literal(default, op.output.type.dtype)
        elif default is not None:
            found[key] = literal(default)
    return found


def _implied(op: Op, key: str) -> tuple[int, ...] | None:
    """What an argument whose default is None stands for; None where nothing can be written."""
    if key == "axes" and isinstance(op.args.get("x"), Var | Literal):
        return tuple(range(op.args["x"].rank))
    if op.kind.name == "conv":
        spatial = op.args["x"].rank - 2
        return {"strides": (1,) * spatial, "dilations": (1,) * spatial, "pad": (0,) * (2 * spatial)}.get(key)
    return None
