"""What a program holds and costs, as data: the numbers that `torchane inspect` shows.

Ops are counted without `const`, nested blocks included, as Apple's metadata.json counts them. Parameters are the
numbers that ops read as operands and that are constant: weights, not strides; those of a compressed weight are counted
unpacked, and `constant_bytes` as stored. Multiply-adds are of one run; a loop's body counts once.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torchane.errors import CompileError
from torchane.mil import ops as _ops  # noqa: F401  (fills the op table)
from torchane.mil.build import arguments, typed
from torchane.mil.constants import inline_constants
from torchane.mil.ir import Arg, Blob, Function, Literal, Op, Program, Var, walk
from torchane.mil.types import STRING, DictType, StateType, TensorType

_CONSTEXPR = "constexpr_"


@dataclass(frozen=True)
class OpLine:
    """One op of a listing."""

    name: str
    kind: str
    results: tuple[str, ...]
    macs: int


@dataclass(frozen=True)
class Constant:
    """One constant tensor: its name, type, size as stored, and where it lies (a file's record, or the text)."""

    name: str
    type: str
    size_bytes: int
    place: str


@dataclass(frozen=True)
class FunctionReport:
    """One function. unsized: ops whose multiply-adds depend on sizes that are not known before run time; unknown:
    kinds of ops that torchane has no rules for; attributes: what the function says of itself, such as the shapes that
    open sizes may have, in plain values."""

    name: str
    opset: str
    inputs: tuple[tuple[str, str], ...]
    states: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    ops: dict[str, int]
    constants: int
    parameters: int
    constant_bytes: int
    macs: int
    unsized: int
    unknown: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    lines: tuple[OpLine, ...] = field(repr=False, default=())
    weights: tuple[Constant, ...] = field(repr=False, default=())


def report(program: Program) -> tuple[FunctionReport, ...]:
    """Every function of a program, its weights loaded or still named only."""
    inlined = {function.name: function for function in inline_constants(program).functions}
    return tuple(_function(function, inlined[function.name]) for function in program.functions)


def _function(function: Function, inlined: Function) -> FunctionReport:
    ops = list(walk(function.ops))
    computing = [op for op in ops if op.kind.name != "const"]
    weights = tuple(_constants(ops))
    lines = []
    unsized = 0
    for op in walk(inlined.ops):
        macs = _macs(op)
        unsized += macs is None
        if op.kind.name != "const":
            lines.append(OpLine(op.name, op.kind.name, tuple(str(var.type) for var in op.outputs), macs or 0))
    states = [var for var in function.inputs if isinstance(var.type, StateType)]
    return FunctionReport(
        name=function.name,
        opset=function.opset,
        inputs=_ports(var for var in function.inputs if var not in states),
        states=_ports(states),
        outputs=_ports(function.outputs),
        ops=dict(sorted(Counter(op.kind.name for op in computing).items())),
        constants=len(ops) - len(computing),
        parameters=_parameters(inlined),
        constant_bytes=sum(constant.size_bytes for constant in weights),
        macs=sum(line.macs for line in lines),
        unsized=unsized,
        unknown=tuple(sorted({op.kind.name for op in computing if not op.kind.known})),
        attributes={key: _plain(value) for key, value in function.attrs.items()},
        lines=tuple(lines),
        weights=weights,
    )


def _plain(literal: Literal) -> Any:
    """A constant as numbers, text, lists and dicts."""
    value = literal.value
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(literal.type, DictType) and isinstance(value, tuple):
        return {str(_plain(key)): _plain(item) for key, item in value}
    if isinstance(value, tuple):
        return [_plain(item) if isinstance(item, Literal) else item for item in value]
    return value if isinstance(value, str) else str(value)


def _ports(variables) -> tuple[tuple[str, str], ...]:
    return tuple((var.name, str(var.type)) for var in variables)


def _macs(op: Op) -> int | None:
    """Multiply-adds of one run; None where they depend on sizes of run time."""
    if not op.kind.known or op.kind.name == "const":
        return 0
    given = arguments(op)
    try:
        return op.kind.macs({key: typed(op.kind, key, arg) for key, arg in given.items()})
    except (CompileError, TypeError, AttributeError, ValueError, IndexError, ZeroDivisionError, AssertionError):
        # an op that does not check: its cost is not known, and inspecting shows it all the same
        return None


def _constants(ops: list[Op]) -> Iterator[Constant]:
    """Every constant tensor of numbers, where it stands."""
    for op in ops:
        for key, value in (*op.args.items(), *op.attrs.items()):
            for item in value if isinstance(value, tuple) else (value,):
                if not isinstance(item, Literal) or not isinstance(item.type, TensorType) or not item.type.is_fixed:
                    continue
                if item.type.dtype is STRING:
                    continue
                name = op.name if key == "val" else f"{op.name}.{key}"
                blob = item.value
                place = f"{blob.path} at {blob.offset:,}" if isinstance(blob, Blob) else "inline"
                yield Constant(name, str(item.type), item.type.size_bytes, place)


def _parameters(function: Function) -> int:
    """Constants of one axis or more that ops read as operands; each counted once, however many ops read it."""
    found: dict[int | str, int] = {}
    for op in walk(function.ops):
        if op.kind.name.startswith(_CONSTEXPR):
            for var in op.outputs:
                found[var.name] = _size(var)
            continue
        for key, arg in op.args.items():
            if key not in op.kind.operands:
                continue
            for item in arg if isinstance(arg, tuple) else (arg,):
                if isinstance(item, Literal) and isinstance(item.type, TensorType) and item.type.rank:
                    found[id(item)] = _size(item)
    return sum(found.values())


def _size(value: Arg) -> int:
    assert isinstance(value, Var | Literal)
    type_ = value.type
    return type_.size if isinstance(type_, TensorType) and type_.is_fixed and type_.dtype is not STRING else 0
