"""Is a program well formed? Says nothing of chips: that is `chips.require_legal`.

For every function: each name is defined once and before it is read, what leaves is defined, every op has
the arguments that its kind takes, and the types written in the program are the ones its ops give. An op of
which torchane has no type rule keeps the types that the program says.
"""

from collections.abc import Iterable
from typing import NoReturn

import numpy as np

from torchane.errors import CompileError
from torchane.mil.build import inferred
from torchane.mil.ir import Arg, Blob, Block, Function, Literal, Op, Program, Var
from torchane.mil.types import STRING, DictType, ListType, StateType, TensorType, TupleType, Type


def check(program: Program, *, before: Program | None = None) -> None:
    """Raises CompileError that names the function, the op, the value and the reason. Returns nothing.

    before: a program that was checked, of which this one was made. An op that both hold, the same object, is not typed again;
    names and their order are checked all the same.
    """
    if not program.functions:
        raise CompileError("the program has no function.")
    names = [function.name for function in program.functions]
    for name in names:
        if names.count(name) > 1:
            raise CompileError(f"{name}: two functions have this name.")
    if program.default_function is not None and len(names) > 1 and program.default_function not in names:
        raise CompileError(f"the default function {program.default_function!r} is none of {', '.join(names)}.")
    known = frozenset(id(op) for function in before.functions for op in function.ops) if before is not None else frozenset()
    for function in program.functions:
        _Checker(function, known).check()


class _Place:
    """An op, or a part of it, for a message: words are made when it is shown, and of most ops none is."""

    def __init__(self, op: Op, *part: str):
        self._op, self._part = op, part

    def __str__(self) -> str:
        part = f", {' '.join(self._part)}" if self._part else ""
        return f"op {self._op.name!r} ({self._op.kind.name}){part}"


class _Checker:
    """Walks one function in order, with the values that can be seen at each place."""

    def __init__(self, function: Function, known: frozenset[int]):
        self._function = function
        self._known = known
        self._defined: dict[str, Var] = {}
        self._constants: dict[Var, Literal] = {}
        self._new_constants: set[Var] = set()

    def check(self) -> None:
        function = self._function
        for var in function.inputs:
            self._define(var, "the inputs")
        self._ops(function.ops)
        self._outputs(function.outputs, "the function")

    def _ops(self, ops: Iterable[Op]) -> None:
        for op in ops:
            where = _Place(op)
            for var in op.inputs:
                self._read(var, where)
            if id(op) in self._known and self._new_constants.isdisjoint(op.inputs):
                if op.kind.name == "const":
                    self._constants[op.output] = op.attrs["val"]
                self._define_all(op, where)
                continue
            self._new_constants.update(op.outputs if op.kind.name == "const" else ())
            for key, arg in op.args.items():
                self._constants_fit(arg, _Place(op, "argument", key))
            for key, value in op.attrs.items():
                self._constant_fits(value, _Place(op, "attribute", key))
            for index, block in enumerate(op.blocks):
                self._block(block, f"{where}, block {block.name or index}")
            if op.kind.name == "const":
                self._const(op, where)
            elif op.kind.has_rules:
                self._types(op, where)
            self._define_all(op, where)

    def _define_all(self, op: Op, where: object) -> None:
        for var in op.outputs:
            self._define(var, where)

    def _block(self, block: Block, where: object) -> None:
        """What a block defines is seen within it only; two blocks side by side may use one name."""
        outside = set(self._defined)
        for var in block.inputs:
            self._define(var, where)
        self._ops(block.ops)
        self._outputs(block.outputs, where)
        for name in self._defined.keys() - outside:
            del self._defined[name]

    def _const(self, op: Op, where: object) -> None:
        value = op.attrs.get("val")
        if value is None or len(op.outputs) != 1 or op.args:
            self._fail(where, "a const has one result, an attribute val and no arguments.")
        if not _agree(value.type, op.output.type):
            self._fail(where, f"the constant is a {value.type} and is declared as {op.output.type}.")
        self._constants[op.output] = value

    def _types(self, op: Op, where: object) -> None:
        """The types that the op's rule gives, compared with those that the program says."""
        for key in op.args.keys() - op.kind.signature.parameters.keys():
            self._fail(where, f"it takes no argument {key!r}. Its signature is {op.kind.usage}.")
        try:
            types = inferred(op.reading(self._constants))
        except CompileError as error:
            self._fail(where, str(error))
        if len(types) != len(op.outputs):
            self._fail(where, f"it gives {len(types)} results and {len(op.outputs)} are named.")
        for var, type_ in zip(op.outputs, types):
            if not _agree(type_, var.type):
                self._fail(where, f"the result {var.name} is declared as {var.type} and the op gives {type_}.")

    def _define(self, var: Var, where: object) -> None:
        if var.name in self._defined:
            self._fail(where, f"the name {var.name!r} is defined a second time; names are unique.")
        self._defined[var.name] = var

    def _read(self, var: Var, where: object) -> None:
        known = self._defined.get(var.name)
        if known is None:
            self._fail(where, f"it reads {var.name!r}, which is not defined before it.")
        if known.type != var.type:
            self._fail(where, f"it reads {var.name!r} as {var.type}, which is defined as {known.type}.")

    def _outputs(self, outputs: tuple[Var, ...], where: object) -> None:
        for var in outputs:
            self._read(var, f"the outputs of {where}")
        for var in outputs:
            if outputs.count(var) > 1:
                self._fail(f"the outputs of {where}", f"{var.name!r} is given back twice.")

    def _constants_fit(self, arg: Arg, where: object) -> None:
        for item in arg if isinstance(arg, tuple) else (arg,):
            if isinstance(item, Literal):
                self._constant_fits(item, where)

    def _constant_fits(self, value: Literal, where: object) -> None:
        reason = _misfit(value)
        if reason is not None:
            self._fail(where, reason)

    def _fail(self, where: object, reason: str) -> NoReturn:
        raise CompileError(f"{self._function.name}: {where}: {reason}")


def _misfit(literal: Literal) -> str | None:
    """Why a constant's value is not what its type says; None if it is."""
    value, type_ = literal.value, literal.type
    if isinstance(value, Blob):
        return None if isinstance(type_, TensorType) and type_.is_fixed else f"a {type_} cannot lie in a weight file."
    if isinstance(type_, TensorType):
        if type_.dtype is STRING:
            fits = isinstance(value, tuple) if type_.rank else isinstance(value, str)
            return None if fits else f"a {type_} is given {value!r}."
        if not isinstance(value, np.ndarray):
            return f"a {type_} is given {value!r}."
        if value.dtype != type_.dtype.numpy or not _agree(TensorType(type_.dtype, value.shape), type_):
            return f"a {type_} is given an array of {value.dtype} and shape {list(value.shape)}."
        return None
    if isinstance(type_, StateType) or not isinstance(value, tuple):
        return f"a {type_} is given {value!r}."
    return None


def _agree(given: Type, declared: Type) -> bool:
    """Whether two types may be of one value: equal, where a size that either leaves open fits any."""
    if isinstance(given, TensorType) and isinstance(declared, TensorType):
        return (
            given.dtype == declared.dtype
            and given.rank == declared.rank
            and all(a == b or None in (a, b) for a, b in zip(given.shape, declared.shape))
        )
    if isinstance(given, ListType) and isinstance(declared, ListType):
        lengths = (given.length, declared.length)
        return _agree(given.element, declared.element) and (None in lengths or lengths[0] == lengths[1])
    if isinstance(given, TupleType) and isinstance(declared, TupleType):
        return len(given.items) == len(declared.items) and all(map(_agree, given.items, declared.items))
    if isinstance(given, DictType) and isinstance(declared, DictType):
        return _agree(given.key, declared.key) and _agree(given.value, declared.value)
    if isinstance(given, StateType) and isinstance(declared, StateType):
        return _agree(given.tensor, declared.tensor)
    return False
