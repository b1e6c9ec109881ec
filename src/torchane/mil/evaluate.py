"""Runs a program in NumPy, op by op: slow, plain, and everyone's oracle.

    outputs = evaluate(program, {"x": x})                                  # exact: what the twin computes
    outputs = evaluate(program, {"x": x}, arithmetic="ideal")              # what the program means
    cache = {}; evaluate(program, {"x": x}, states=cache)                  # states are read and left there

`exact` is the arithmetic of the twin: each op computes on the exact values of its operands, wide
(float64), and its result is rounded once to the element type that the program gives it. `ideal` rounds
nothing: float64 from end to end. Another arithmetic (a chip's own) is an `Arithmetic` handed in.
"""

import os
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from torchane.errors import CompileError, UsageError
from torchane.mil import ops as _ops  # noqa: F401  (fills the op table)
from torchane.mil.build import arguments
from torchane.mil.formats import narrowed, widened
from torchane.mil.ir import Arg, Blob, Block, Function, Literal, Op, Program, Var
from torchane.mil.ops.state import State
from torchane.mil.types import STRING, DType, StateType, TensorType, Type

#: Another way to compute an op: the op (for its types) and what its NumPy rule would be given, to its results.
Rule = Callable[[Op, Mapping[str, Any]], tuple[Any, ...]]


@dataclass(frozen=True)
class Arithmetic:
    """How numbers are computed and kept.

    stores: an op's result, wide, and the element type that the program gives it -> the array that is kept.
    rounds: whether what is kept has the program's element types; if not, floats are kept in float64.
    rules: by op name, what replaces the op's NumPy rule.
    prepares: a function as it is computed: with the ops in one that a compiler makes one.
    """

    name: str
    stores: Callable[[np.ndarray, DType], np.ndarray]
    rounds: bool = True
    rules: Mapping[str, Rule] = field(default_factory=dict)
    prepares: Callable[[Function], Function] = lambda function: function

    def admits(self, array: np.ndarray, dtype: DType) -> np.ndarray:
        """What is kept of an array from outside: of the NumPy type that carries `dtype`, or of any other."""
        if array.dtype != dtype.numpy:
            return self.stores(array, dtype)
        return array if self.rounds else widened(array, dtype)

    def loads(self, array: np.ndarray, dtype: DType) -> np.ndarray:
        """What the rules compute with: float64 for floats."""
        return widened(array, dtype) if self.rounds else array


def _unrounded(array: np.ndarray, dtype: DType) -> np.ndarray:
    return np.asarray(array, np.float64) if dtype.is_float else narrowed(array, dtype)


EXACT = Arithmetic("exact", stores=narrowed)
IDEAL = Arithmetic("ideal", stores=_unrounded, rounds=False)
ARITHMETICS = {"exact": EXACT, "ideal": IDEAL}


def evaluate(
    program: Program | Function,
    inputs: Mapping[str, np.ndarray],
    *,
    function: str | None = None,
    states: MutableMapping[str, np.ndarray] | None = None,
    arithmetic: str | Arithmetic = "exact",
) -> dict[str, Any]:
    """The outputs by name, in the dtypes of the program (float64 for floats if `ideal`); a list is a tuple.

    inputs: an array per input name, of the declared shape, where `?` takes any size.
    function: which one, by name; if not said the only one, the program's default function, or `main`.
    states: an array per state name; one that is absent starts as zeros. After the run it holds what the run left.
    Constants must be in memory: read a program with its weight files through `mil.load`.
    Raises UsageError for a missing input, another shape or an unknown name, CompileError for what cannot be run.
    """
    chosen = as_computed(function_of(program, function), arithmetic)
    run = Run(chosen, inputs, states=states, arithmetic=arithmetic)
    run.ops(chosen.ops)
    return run.finish()


def function_of(program: Program | Function, name: str | None = None) -> Function:
    """The function of this name, or `program.main` if none is said. Raises UsageError if it is not there."""
    if isinstance(program, Function):
        return program
    if name is None:
        return program.main
    for function in program.functions:
        if function.name == name:
            return function
    raise UsageError(f"the program has no function {name!r}; it has {', '.join(f.name for f in program.functions)}.")


def as_computed(function: Function, arithmetic: str | Arithmetic) -> Function:
    """The function with the ops in one that are computed as one in this arithmetic. Raises UsageError for its name."""
    return _arithmetic(arithmetic).prepares(function)


def _arithmetic(arithmetic: str | Arithmetic) -> Arithmetic:
    if isinstance(arithmetic, Arithmetic):
        return arithmetic
    if arithmetic not in ARITHMETICS:
        raise UsageError(f"no arithmetic is called {arithmetic!r}; there are {', '.join(ARITHMETICS)}.")
    return ARITHMETICS[arithmetic]


def _checked(function: Function, var: Var, given: Any) -> np.ndarray:
    array = np.asarray(given)
    type_ = var.type.tensor if isinstance(var.type, StateType) else var.type
    if array.dtype.kind not in _NUMBERS and not (isinstance(type_, TensorType) and type_.dtype is STRING):
        raise UsageError(f"{function.name}: the input {var.name} is {var.type} and was given {array.dtype} values.")
    if not _has_shape(array, type_):
        raise UsageError(f"{function.name}: the input {var.name} is {var.type} and was given the shape {array.shape}.")
    return array


def require_memory(op: Op) -> None:
    """Raises CompileError for results that this machine's memory cannot hold: a few words of a text can ask for
    a million million numbers, and a system that grants them kills the process when they are written."""
    size_bytes = sum(
        var.type.size * _WIDE for var in op.outputs if isinstance(var.type, TensorType) and var.type.is_fixed
    )
    if size_bytes > _memory_bytes():
        raise CompileError(
            f"{op.name} ({op.kind.name}): its result, {', '.join(str(var.type) for var in op.outputs)}, takes "
            f"{size_bytes:,} bytes to compute and this machine has {_memory_bytes():,}."
        )


#: Kinds of NumPy arrays that may be handed in: booleans, integers, floats.
_NUMBERS = "biuf"

#: Bytes of a number while a rule computes it.
_WIDE = np.dtype(np.float64).itemsize


@cache
def _memory_bytes() -> int:
    """Of this machine; where the system does not say, what no machine has."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return 1 << 62
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _zeros(function: Function, var: Var) -> np.ndarray:
    """What a state holds before the first run."""
    assert isinstance(var.type, StateType)
    if not var.type.tensor.is_fixed:
        raise UsageError(
            f"{function.name}: the state {var.name} is {var.type}, of no fixed size: give its first value."
        )
    return np.zeros(var.shape, var.type.tensor.dtype.numpy)  # type: ignore[arg-type]


class Run:
    """One run of a function: the arithmetic, and the value of every Var defined so far, as it is kept.

    `ops` may be called for a part of them at a time, and what is computed elsewhere put into `values`.
    """

    def __init__(
        self,
        function: Function,
        inputs: Mapping[str, np.ndarray],
        *,
        states: MutableMapping[str, np.ndarray] | None = None,
        arithmetic: str | Arithmetic = "exact",
    ):
        """Arguments and errors as those of `evaluate`."""
        self.arithmetic = _arithmetic(arithmetic)
        names = {var.name for var in function.inputs}
        unknown = [name for name in (*inputs, *(states or ())) if name not in names]
        if unknown:
            known = ", ".join(sorted(names)) or "none"
            raise UsageError(f"{function.name} has no input {unknown[0]!r}; it has {known}.")
        self.values: dict[Var, Any] = {}
        self._function = function
        self._states = {} if states is None else states
        for var in function.inputs:
            if isinstance(var.type, StateType):
                given = self._states[var.name] if var.name in self._states else _zeros(function, var)
                start = self.admitted(_checked(function, var, given), var.type.tensor)
                self.values[var] = State(self.loaded(start, var.type.tensor))
            elif var.name not in inputs:
                raise UsageError(f"{function.name}: no value for the input {var.name} ({var.type}).")
            elif not isinstance(var.type, TensorType):
                raise UsageError(
                    f"{function.name}: the input {var.name} is a {var.type}; tensors only can be handed in."
                )
            else:
                self.values[var] = self.admitted(_checked(function, var, inputs[var.name]), var.type)

    def finish(self) -> dict[str, Any]:
        """The outputs by name; the states are left with what the run made of them."""
        for var in self._function.inputs:
            if isinstance(var.type, StateType):
                self._states[var.name] = self.stored(self.values[var].array, var.type.tensor)
        return {var.name: self.values[var] for var in self._function.outputs}

    def ops(self, ops: tuple[Op, ...]) -> None:
        for op in ops:
            if op.kind.name == "const":
                if "val" not in op.attrs or len(op.outputs) != 1:
                    raise CompileError(f"{op.name} (const): a const has one result and an attribute val.")
                self.values[op.output] = self.constant(op.attrs["val"], op.name)
                continue
            require_memory(op)
            try:
                results = self.results(op)
            except MemoryError as error:
                raise CompileError(f"{op.name} ({op.kind.name}): there is not enough memory: {error}") from error
            except (ValueError, IndexError) as error:  # NumPy's, of operands whose sizes or values only the run tells
                given = ", ".join(f"{var.name} {list(np.shape(self.values[var]))}" for var in op.inputs)
                raise CompileError(
                    f"{op.name} ({op.kind.name}): its operands do not fit one another ({given}): {error}."
                ) from error
            if len(results) != len(op.outputs):
                raise CompileError(
                    f"{op.name} ({op.kind.name}): it gives {len(results)} results and {len(op.outputs)} are named."
                )
            for var, result in zip(op.outputs, results):
                kept = self.values[var] = self.stored(result, var.type)
                if isinstance(var.type, TensorType) and not _has_shape(kept, var.type):
                    raise CompileError(
                        f"{op.name} ({op.kind.name}): the result {var.name} is declared as {var.type} and came out in "
                        f"the shape {list(np.shape(kept))}."
                    )

    def results(self, op: Op) -> tuple[Any, ...]:
        args = {key: self.argument(op, key, arg) for key, arg in arguments(op).items()}
        if self.arithmetic.rounds:
            args |= self.defaults(op)
        if op.kind.nested:
            args["blocks"] = tuple(self.callable(block) for block in op.blocks)
        rule = self.arithmetic.rules.get(op.kind.name)
        return op.kind.evaluate(args) if rule is None else rule(op, args)

    def argument(self, op: Op, key: str, arg: Arg) -> Any:
        """An operand as an array to compute with, a constant as plain Python."""
        if isinstance(arg, tuple):
            return tuple(self.argument(op, key, item) for item in arg)
        value = self.values[arg] if isinstance(arg, Var) else self.constant(arg, op.name)
        if key not in op.kind.operands and isinstance(value, np.ndarray):
            return Literal(arg.type, value).python()
        return self.loaded(value, arg.type)

    def constant(self, literal: Literal, name: str) -> Any:
        if isinstance(literal.value, Blob):
            raise CompileError(
                f"{name}: a constant lies in {literal.value.path} at {literal.value.offset} and is not in memory. "
                "Load the program with its weights: mil.load(path)."
            )
        return self.admitted(literal.value, literal.type)

    def defaults(self, op: Op) -> dict[str, float]:
        """The epsilons left out, rounded to the type of the first operand that holds floats, as if written there."""
        missing = op.kind.float_defaults(op.args)
        dtypes = [var.type.dtype for var in op.inputs if isinstance(var.type, TensorType) and var.type.dtype.is_float]
        if not missing or not dtypes:
            return {}
        return {key: float(widened(narrowed(np.array(value), dtypes[0]), dtypes[0])) for key, value in missing.items()}

    def callable(self, block: Block) -> Callable[..., tuple[Any, ...]]:
        """A nested block as a function of its inputs; it sees every value defined around it."""

        def call(*values: Any) -> tuple[Any, ...]:
            for var, value in zip(block.inputs, values, strict=True):
                self.values[var] = self.stored(value, var.type)
            self.ops(block.ops)
            return tuple(self.loaded(self.values[var], var.type) for var in block.outputs)

        return call

    def admitted(self, value: Any, type_: Type) -> Any:
        """What is kept of a value from outside."""
        return self.arithmetic.admits(value, type_.dtype) if _is_array(value, type_) else value

    def loaded(self, value: Any, type_: Type) -> Any:
        """What the rules are given of a kept value."""
        return self.arithmetic.loads(value, type_.dtype) if _is_array(value, type_) else value

    def stored(self, value: Any, type_: Type) -> Any:
        """What is kept of a result."""
        return self.arithmetic.stores(np.asarray(value), type_.dtype) if _is_array(value, type_) else value


def _has_shape(value: Any, type_: Type) -> bool:
    """Whether an array has the shape that a type says, `?` being any size. What is no array has any."""
    if not isinstance(value, np.ndarray) or not isinstance(type_, TensorType):
        return True
    shape = type_.shape
    return value.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, value.shape))


def _is_array(value: Any, type_: Type) -> bool:
    return isinstance(value, np.ndarray | np.generic) and isinstance(type_, TensorType)
