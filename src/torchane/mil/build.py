"""Builds a Program op by op; each result's type comes from the op's own rule.

    b = Builder()
    x = b.input("x", (1, 64, 1, 32))                 # fp16 unless said otherwise
    y = b.mul(x=b.exp(x=x), y=0.5)                   # a Python float takes the dtype of the other operand
    program = b.program(y)

Every op of the table is a method, named by its MIL name, with MIL's argument names; `name=` suggests
the result's name (made unique). Constants stay inline as Literals: `mil.name_constants` turns them
into the named `const` statements that engines want.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from torchane.errors import CompileError
from torchane.mil import ops as _ops  # noqa: F401  (fills the op table)
from torchane.mil.ir import Arg, Function, Literal, Op, Program, Var, literal
from torchane.mil.kinds import KINDS, OpKind
from torchane.mil.types import FP16, DType, TensorType, Type


class Builder:
    """Collects ops in order. `taken` holds names that must not be given again."""

    def __init__(self, taken: Iterable[str] = ()):
        self.inputs: list[Var] = []
        self.ops: list[Op] = []
        self._taken: dict[str, int] = dict.fromkeys(taken, 0)

    def input(self, name: str, shape: tuple[int, ...] | Type, dtype: DType = FP16) -> Var:
        """Declares an input; `shape` may be a whole Type."""
        type_ = TensorType(dtype, tuple(shape)) if isinstance(shape, tuple) else shape
        var = Var(self.fresh(name), type_)
        self.inputs.append(var)
        return var

    def fresh(self, name: str) -> str:
        """`name`, or `name_1`, `name_2`, ... where it is taken."""
        if name not in self._taken:
            self._taken[name] = 0
            return name
        while True:
            self._taken[name] += 1
            candidate = f"{name}_{self._taken[name]}"
            if candidate not in self._taken:
                self._taken[candidate] = 0
                return candidate

    def emit(self, kind: OpKind, args: dict[str, Any], name: str | None = None) -> tuple[Var, ...]:
        """Appends an op of `kind` and returns its results. None arguments are left out."""
        args = {key: self._arg(kind, key, value, args) for key, value in args.items() if value is not None}
        types = _types(kind, args)
        base = name or kind.name
        outputs = tuple(Var(self.fresh(base), type_) for type_ in types)
        attrs = {"name": literal(outputs[0].name)} if outputs else {}
        self.ops.append(Op(kind, args, outputs, attrs))
        return outputs

    def program(self, *outputs: Var, name: str = "main") -> Program:
        return Program((Function(name, tuple(self.inputs), tuple(self.ops), outputs),))

    def __getattr__(self, kind_name: str) -> Callable[..., Any]:
        kind = KINDS.get(kind_name)
        if kind is None:
            raise AttributeError(f"MIL has no op {kind_name!r} that torchane knows")

        def method(name: str | None = None, **args: Any) -> Any:
            results = self.emit(kind, args, name)
            return results[0] if len(results) == 1 else results

        return method

    @staticmethod
    def _arg(kind: OpKind, key: str, value: Any, args: dict[str, Any]) -> Arg:
        if isinstance(value, Var | Literal):
            return value
        if key in kind.operands and isinstance(value, tuple | list):
            return tuple(item if isinstance(item, Var | Literal) else literal(item) for item in value)
        if isinstance(value, float) or (key in kind.operands and isinstance(value, int)):
            return literal(value, _float_beside(kind, key, args))
        return literal(value)


def typed(kind: OpKind, key: str, arg: Arg) -> Any:
    """What a type rule is given for an argument: the type of an operand, the value of a constant.

    Raises CompileError where a constant is asked for and the argument is only known at run time.
    """
    if isinstance(arg, tuple):
        return tuple(item.type if key in kind.operands else typed(kind, key, item) for item in arg)
    if key in kind.operands:
        return arg if key in kind.dynamic and isinstance(arg, Literal) else arg.type
    if isinstance(arg, Var):
        if key in kind.dynamic:
            return arg.type
        raise CompileError(f"{kind.name}: {key} must be a constant, and {arg.name} is only known at run time.")
    return arg.python()


def arguments(op: Op) -> dict[str, Arg]:
    """All arguments of an op, wherever its text holds them: constexpr ops of ios16 keep theirs as attributes."""
    given = {key: arg for key, arg in op.attrs.items() if key in op.kind.signature.parameters}
    return {**given, **op.args}


def inferred(op: Op) -> tuple[Type, ...]:
    """The types that an op's own rule gives its results. Raises CompileError where its arguments do not fit."""
    args = arguments(op)
    if op.kind.nested:
        return op.kind.infer({**{key: typed(op.kind, key, arg) for key, arg in args.items()}, "blocks": op.blocks})
    return _types(op.kind, args)


#: What rules gave before. A network is a few hundred different ops, each built and checked thousands of times.
_INFERRED: dict[Hashable, tuple[Type, ...]] = {}
_MOST_INFERRED = 1 << 16
#: A larger constant that a rule may look into would be kept alive by what is remembered of it.
_MOST_ENTRIES = 64


def _types(kind: OpKind, args: Mapping[str, Arg]) -> tuple[Type, ...]:
    """The types of the results, by the kind's rule: once for equal arguments."""
    seen = [_seen_by_rule(kind, name, arg) for name, arg in args.items()]
    if not kind.known or None in seen:
        return kind.infer({name: typed(kind, name, arg) for name, arg in args.items()})
    key = (kind.name, *args, *seen)
    found = _INFERRED.get(key)
    if found is None:
        found = kind.infer({name: typed(kind, name, arg) for name, arg in args.items()})
        if len(_INFERRED) >= _MOST_INFERRED:
            _INFERRED.clear()
        _INFERRED[key] = found
    return found


def _seen_by_rule(kind: OpKind, name: str, arg: Arg) -> Hashable:
    """As much of an argument as a rule may look at; a Literal knows its dtype, so that True is not 1. None: too much."""
    if isinstance(arg, tuple):
        items = tuple([_seen_by_rule(kind, name, item) for item in arg])
        return None if None in items else items
    if isinstance(arg, Var):
        return Var, arg.type
    if name in kind.operands and name not in kind.dynamic:
        return arg.type
    return None if isinstance(arg.value, np.ndarray) and arg.value.size > _MOST_ENTRIES else arg


def _float_beside(kind: OpKind, key: str, args: dict[str, Any]) -> DType:
    """The dtype for a bare number: that of the first operand which has one, else fp16."""
    for operand in kind.operands:
        other = args.get(operand)
        if operand != key and isinstance(other, Var | Literal | np.ndarray):
            type_ = other.type if not isinstance(other, np.ndarray) else literal(other).type
            if isinstance(type_, TensorType) and type_.dtype.is_float:
                return type_.dtype
    return FP16
