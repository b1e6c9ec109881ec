"""Drop ops whose results nobody reads.

    y = exp(x = x)
    z = add(x = x, y = x)  -> (z)    ->    z = add(x = x, y = x)  -> (z)
Inputs stay, read or not: they are the signature. An op without results (`write_state`) stays. Same bits.
"""

from torchane.mil.ir import Op, Program, Var, walk


def drop_dead(program: Program) -> Program:
    live: set[Var] = set(program.outputs)
    kept: list[Op] = []
    for op in reversed(program.ops):
        if op.outputs and live.isdisjoint(op.outputs):
            continue
        kept.append(op)
        live.update(op.inputs)
        for block in op.blocks:
            live.update(block.outputs)
            for inner in walk(block.ops):
                live.update(inner.inputs)
    return program.with_(ops=tuple(reversed(kept)))
