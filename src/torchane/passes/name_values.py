"""Name ports so that they sort, and everything else by what it is.

    main(primals_12, view_3) { mul_7 = ..; c = const() } -> (mul_7)
        ->  main(a00_primals, a01_view) { .. } -> (z00_mul)
Compilers bind surfaces in the order of the sorted names (ane-constraints.md, P3): inputs are a00_.., outputs
z00_.., so that sorted order is declared order. The rest of a name keeps its words and loses its numbers, and
inner values are numbered in order by the op that makes them, constants by the argument that reads them: the
same layer captured twice gives the same text. Same bits.
"""

import re
from collections import Counter
from dataclasses import replace

from torchane.mil.ir import Arg, Op, Program, Var, literal


def name_values(program: Program) -> Program:
    new: dict[Var, Var] = {}
    for letter, ports in (("a", program.inputs), ("z", program.outputs)):
        digits = max(2, len(str(len(ports) - 1)))
        for index, var in enumerate(ports):
            new[var] = Var(f"{letter}{index:0{digits}d}_{_words(var.name)}", var.type)
    counts: Counter[str] = Counter()
    for op in program.ops:
        for var in op.outputs:
            if var not in new:
                stem = _words(var.name) if op.kind.name == "const" else op.kind.name
                new[var] = Var(f"{stem}_{counts[stem]}", var.type)
                counts[stem] += 1
    return program.with_(
        inputs=tuple(new[var] for var in program.inputs),
        outputs=tuple(new[var] for var in program.outputs),
        ops=tuple(_renamed(op, new) for op in program.ops),
    )


def _renamed(op: Op, new: dict[Var, Var]) -> Op:
    outputs = tuple(new[var] for var in op.outputs)
    attrs = {**op.attrs, "name": literal(outputs[0].name)} if outputs else op.attrs
    args: dict[str, Arg] = {name: _read(arg, new) for name, arg in op.args.items()}
    return replace(op, args=args, outputs=outputs, attrs=attrs)


def _read(arg: Arg, new: dict[Var, Var]) -> Arg:
    if isinstance(arg, tuple):
        return tuple(new[item] if isinstance(item, Var) else item for item in arg)
    return new[arg] if isinstance(arg, Var) else arg


def _words(name: str) -> str:
    """`layers.0.q_proj.weight` -> `layers_q_proj_weight`, `mul_12` -> `mul`; `value` if only numbers are left."""
    words = [word for word in re.split(r"[^A-Za-z]+", name) if word]
    return "_".join(words) or "value"
