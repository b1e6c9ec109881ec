"""What passes share: replacing ops by what a rule builds, and finding names and scalars.

A rule is given a Builder and an op and returns what stands for the op's results; what it builds lands
where the op was. The last value keeps the op's own name, so that a program reads the same before and
after, and the names of its outputs, which belong to its signature, never change.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from torchane.chips import Chip
from torchane.mil.build import Builder
from torchane.mil.ir import Arg, Literal, Op, Program, Var, literal
from torchane.mil.ops.constant import identity
from torchane.mil.types import TensorType

#: None: the op stays. A Literal or an older Var: the op's readers read that instead.
Rule = Callable[[Builder, Op], Var | Literal | tuple[Var | Literal, ...] | None]


def rewrite(program: Program, rules: Mapping[str, Rule], *, retyped: bool = False) -> Program:
    """The program with every op whose kind has a rule replaced by what the rule builds, in one sweep.

    retyped: a rule may give a value of another type, which the op's readers then read under its own name. The
    type of an output is the signature's: an op whose result is one stays as it is if the rule changed its type.
    """
    b = Builder(program.names)
    outputs = set(program.outputs)
    source: dict[Var, Var | Literal] = {}
    for op in program.ops:
        op = op.reading(source)
        rule = rules.get(op.kind.name)
        start = len(b.ops)
        results = None if rule is None else rule(b, op)
        if results is None:
            assert len(b.ops) == start, f"the rule for {op.kind.name} built ops and kept the old one"
            b.ops.append(op)
            continue
        results = results if isinstance(results, tuple) else (results,)
        renamed: dict[Var, Var] = {}
        for old, new in zip(op.outputs, results, strict=True):
            new = renamed.get(new, new) if isinstance(new, Var) else new
            if old.type != new.type:
                assert retyped, f"the rule for {op.kind.name} made {old.name} {new.type}, not {old.type}"
                source[old] = new
                if old in outputs:
                    b.ops.append(op)
                continue
            if isinstance(new, Var) and new not in renamed.values() and _renamed(b, start, new, old):
                renamed[new] = old
                continue
            if old in outputs:
                b.ops.append(Op(identity, {"x": new}, (old,), {"name": literal(old.name)}))
            else:
                source[old] = new
    return program.with_(ops=tuple(b.ops))


def unless_taken(rules: Mapping[str, Rule], chip: Chip | None) -> Mapping[str, Rule]:
    """The rules for ops that the chip does not take as they are; all of them without a chip."""
    return rules if chip is None else {kind: rule for kind, rule in rules.items() if not chip.takes(kind)}


def scalar(arg: Arg | None) -> float | None:
    """The number that a Literal holds in every element, or None for anything else."""
    if not isinstance(arg, Literal) or not isinstance(arg.value, np.ndarray) or arg.value.size == 0:
        return None
    if arg.value.dtype == np.bool_ or arg.value.dtype.kind not in "fiu":
        return None
    first = arg.value.flat[0]
    return float(first) if arg.value.size == 1 or (arg.value == first).all() else None


def shape_of(arg: Arg) -> tuple[int, ...]:
    """The shape of a tensor argument; asserts that it is one and that every size is known."""
    assert isinstance(arg, Var | Literal) and isinstance(arg.type, TensorType) and arg.type.is_fixed
    return arg.type.shape  # type: ignore[return-value]


def literal_like(value: np.ndarray | float, type_: TensorType) -> Literal:
    """`value`, rounded once to the element type of `type_`."""
    with np.errstate(over="ignore"):
        return literal(np.asarray(value), type_.dtype)


def with_outputs(op: Op, outputs: tuple[Var, ...]) -> Op:
    """The op with other results, its `name` attribute following the first."""
    if outputs == op.outputs:
        return op
    return replace(op, outputs=outputs, attrs={**op.attrs, "name": literal(outputs[0].name)})


def _renamed(b: Builder, start: int, new: Var, old: Var) -> bool:
    """Gives a value built since `start` the name of the value that it replaces; False if it is older."""
    for index in range(len(b.ops) - 1, start - 1, -1):
        op = b.ops[index]
        if new in op.outputs:
            b.ops[index] = with_outputs(op, tuple(old if var == new else var for var in op.outputs))
            for later in range(index + 1, len(b.ops)):
                b.ops[later] = b.ops[later].reading({new: old})
            return True
    return False

