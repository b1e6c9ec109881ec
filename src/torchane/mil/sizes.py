"""A function of open sizes made one of fixed sizes: what its types say once the inputs are known.

    func main(tensor<fp16, [1, ?]> x) { tensor<fp16, [1, ?]> y = relu(x = x); } -> (y);
    with_sizes(function, {"x": (1, 8)})     ->    every ? is 8

A size that depends on values, and not on sizes alone, stays `?`. No number changes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torchane.errors import CompileError
from torchane.mil.build import inferred
from torchane.mil.ir import Function, Literal, Op, Var
from torchane.mil.types import TensorType, Type


def with_sizes(function: Function, shapes: Mapping[str, tuple[int, ...]]) -> Function:
    """The function with its inputs in these shapes, which fit the declared ones, and all that follows from them.
    Its constants must stand in the arguments that read them (`constants.inline_constants`).
    Raises CompileError where operands turn out not to fit."""
    if not any(_is_open(var.type) for var in function.inputs):
        return function
    source: dict[Var, Var | Literal] = {}
    inputs = []
    for var in function.inputs:
        fixed = var
        if isinstance(var.type, TensorType) and not var.type.is_fixed:
            fixed = Var(var.name, TensorType(var.type.dtype, shapes[var.name]))
        source[var] = fixed
        inputs.append(fixed)
    ops = _followed(function.ops, source)
    outputs = tuple(source.get(var, var) for var in function.outputs)
    return replace(function, inputs=tuple(inputs), ops=ops, outputs=outputs)  # type: ignore[arg-type]


def _followed(ops: Iterable[Op], source: dict[Var, Var | Literal]) -> tuple[Op, ...]:
    """The ops reading what `source` says; what their results become is added to it."""
    kept = []
    for before in ops:
        op = before.reading(source)
        blocks = []
        for block in op.blocks:
            within = dict(source)
            body = _followed(block.ops, within)
            outputs = tuple(within.get(var, var) for var in block.outputs)
            blocks.append(replace(block, ops=body, outputs=outputs))  # type: ignore[arg-type]
        if blocks:  # what leaves a loop may change its sizes from turn to turn
            kept.append(replace(op, blocks=tuple(blocks)))
            continue
        changed = any(item in source for item in before.inputs) or any(_is_open(var.type) for var in op.outputs)
        outputs = _closed(op) if changed else op.outputs
        source.update(zip(op.outputs, outputs))
        kept.append(replace(op, outputs=outputs))
    return tuple(kept)


def _closed(op: Op) -> tuple[Var, ...]:
    """The results with the sizes that the op's rule now gives in place of `?`. Raises CompileError where its
    operands do not meet, as they may have while their sizes were open."""
    if op.kind.name == "const" or not op.kind.has_rules:
        return op.outputs
    try:
        types = inferred(op)
    except CompileError as error:
        raise CompileError(f"op {op.name!r} ({op.kind.name}), with the sizes of these inputs: {error}") from error
    return tuple(Var(var.name, _of_both(op, var, type_)) for var, type_ in zip(op.outputs, types))


def _of_both(op: Op, var: Var, found: Type) -> Type:
    declared = var.type
    if not isinstance(declared, TensorType) or not isinstance(found, TensorType) or declared.rank != found.rank:
        return declared
    if any(None not in sizes and sizes[0] != sizes[1] for sizes in zip(declared.shape, found.shape)):
        raise CompileError(
            f"op {op.name!r} ({op.kind.name}): the result {var.name} is declared as {declared}, and with the sizes of "
            f"these inputs it is {found}."
        )
    return TensorType(declared.dtype, tuple(b if a is None else a for a, b in zip(declared.shape, found.shape)))


def _is_open(type_: Type) -> bool:
    return isinstance(type_, TensorType) and not type_.is_fixed
