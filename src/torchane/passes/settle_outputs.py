"""Give every output a value of its own.

    main(x) { y = exp(x);  z = add(y, y) } -> (y, z, z)
        ->  main(x) { y_1 = exp(x);  z_1 = add(y_1, y_1);  y = identity(y_1);  z = identity(z_1); .. } -> (y, z, z_2)
An output that other ops also read comes out of an `identity`, which keeps its name: without it one reporter saw
NaN (ane-constraints.md, P7). So does an input that is returned, or an output listed again, under a new name. A
program whose only output is an input computes nothing and is refused (P6). Same bits.
"""

from torchane.errors import CompileError
from torchane.mil.build import Builder
from torchane.mil.ir import Op, Program, Var, literal
from torchane.mil.ops.constant import identity
from torchane.passes.rewrite import with_outputs


def settle_outputs(program: Program) -> Program:
    inputs, uses = set(program.inputs), program.main.uses
    if len(program.outputs) == 1:
        if program.outputs[0] in inputs:
            raise CompileError(
                f"the only output is the input {program.outputs[0].name}: there is nothing to compute. "
                "Leave the tensor on the host."
            )
        return program
    b = Builder(program.names)
    inner: dict[Var, Var] = {}
    outputs: list[Var] = []
    copies: list[Op] = []
    for var in program.outputs:
        out = var
        if var in inputs or var in outputs:
            out = Var(b.fresh(var.name), var.type)
            copies.append(_copy(inner.get(var, var), out))
        elif var in uses:
            inner[var] = Var(b.fresh(var.name), var.type)
            copies.append(_copy(inner[var], out))
        outputs.append(out)
    if not copies:
        return program
    ops = [with_outputs(op.reading(inner), tuple(inner.get(var, var) for var in op.outputs)) for op in program.ops]
    return program.with_(ops=(*ops, *copies), outputs=tuple(outputs))


def _copy(source: Var, target: Var) -> Op:
    return Op(identity, {"x": source}, (target,), {"name": literal(target.name)})
