"""MIL as data: a Program holds Functions, a Function holds Ops, an Op reads Args and defines Vars.

    Program ── Function main<ios18>(inputs) ── Block: ops, outputs
                                                 └─ Op: kind, args {name: Arg}, outputs, attrs, blocks
    Arg = Var | Literal | tuple of those          Literal = type + value (NumPy array, str, Blob, ...)

Everything is frozen: a pass builds a new Function. A Var is its name and type, so two functions that
say the same are equal, and `parse(to_text(p)) == p` can hold. Names are unique within a function.
Nothing here knows of training, of a chip, or of text.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from torchane.errors import UsageError
from torchane.mil.kinds import OpKind
from torchane.mil.types import STRING, StateType, TensorType, Type, dtype_of


@dataclass(frozen=True)
class Var:
    """A value by its name; defined once, by an op, a block or as a function's input."""

    name: str
    type: Type

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of a tensor (or of a state's tensor)."""
        type_ = self.type.tensor if isinstance(self.type, StateType) else self.type
        assert isinstance(type_, TensorType), f"{self.name} is a {self.type}, not a tensor"
        return type_.shape

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class Blob:
    """Where a constant's bytes lie: a weight file and the offset of the record in it."""

    path: str
    offset: int


#: Of a constant, so many numbers enter its hash.
_MOST_HASHED = 1024


@dataclass(frozen=True, eq=False)
class Literal:
    """A constant. `value` by type:

    tensor of numbers -> read-only NumPy array of that shape in `type.dtype.numpy` (rank 0 for a scalar);
    string scalar -> str; tensor of strings -> tuple of str, row-major; list, tuple -> tuple of Literal;
    dict -> tuple of (Literal, Literal) pairs, in order; anything -> Blob, its bytes lying in a file.
    """

    type: Type
    value: object

    def __post_init__(self) -> None:
        if isinstance(self.value, np.ndarray):
            self.value.setflags(write=False)

    def __eq__(self, other: object) -> bool:
        """Equal types and equal bits: NaN equals itself, and -0.0 is not 0.0."""
        if not isinstance(other, Literal):
            return NotImplemented
        if self is other:
            return True
        if self.type != other.type:
            return False
        if isinstance(self.value, np.ndarray) and isinstance(other.value, np.ndarray):
            return _same_bits(self.value, other.value)
        return type(self.value) is type(other.value) and self.value == other.value

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        if not isinstance(self.value, np.ndarray):
            return hash((self.type, self.value))
        every = max(1, -(-self.value.size // _MOST_HASHED))  # of a large one a sample, spread over it
        return hash((self.type, self.value.reshape(-1)[::every].tobytes()))

    @property
    def shape(self) -> tuple[int | None, ...]:
        assert isinstance(self.type, TensorType), f"a {self.type} has no shape"
        return self.type.shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    def python(self) -> object:
        """The value as plain Python: bool, int, float, str, or a flat tuple for a vector."""
        if isinstance(self.value, np.ndarray):
            items = self.value.tolist()
            return tuple(items) if isinstance(items, list) else items
        return self.value


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.nbytes < _MOST_HASHED or not (a.flags.c_contiguous and b.flags.c_contiguous):
        return a.tobytes() == b.tobytes()
    return np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8))


Arg = Var | Literal | tuple["Var | Literal", ...]


def literal(value: object, dtype=None) -> Literal:
    """A Literal from NumPy or plain Python: bool -> bool, int -> int32, str -> string, a tuple or list of
    ints or bools -> a vector. A float needs `dtype` (a float has no width of its own).
    """
    if isinstance(value, Literal):
        return value
    if isinstance(value, str):
        return Literal(TensorType(STRING), value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value):
        return Literal(TensorType(STRING, (len(value),)), tuple(value))
    if dtype is not None:
        array = np.array(value, dtype=dtype.numpy)
        return Literal(TensorType(dtype, array.shape), array)
    array = np.array(value)
    if not isinstance(value, np.ndarray | np.generic) and (array.dtype == np.int64 or array.size == 0):
        array = array.astype(np.int32)
    assert array.dtype != np.float64 or isinstance(value, np.ndarray), "give a Python float a dtype"
    return Literal(TensorType(dtype_of(array), array.shape), array)


@dataclass(frozen=True)
class Op:
    """One statement. `args` and `attrs` keep the order in which they were written."""

    kind: OpKind
    args: Mapping[str, Arg]
    outputs: tuple[Var, ...]
    attrs: Mapping[str, Literal] = field(default_factory=dict)
    blocks: tuple["Block", ...] = ()

    __hash__ = None  # type: ignore[assignment]

    @property
    def output(self) -> Var:
        """The one result; asserts that there is one."""
        assert len(self.outputs) == 1, f"{self.kind.name} has {len(self.outputs)} results"
        return self.outputs[0]

    @cached_property
    def inputs(self) -> tuple[Var, ...]:
        """The Vars that are read as arguments, in order of writing; blocks not looked into."""
        return tuple(arg for value in self.args.values() for arg in _flat(value) if isinstance(arg, Var))

    @property
    def name(self) -> str:
        """What errors call this op: its `name` attribute, else its first result, else its kind."""
        named = self.attrs.get("name")
        if named is not None and isinstance(named.value, str):
            return named.value
        return self.outputs[0].name if self.outputs else self.kind.name

    def reading(self, source: Mapping[Var, Var | Literal]) -> "Op":
        """This op with every Var found in `source` replaced by what it maps to."""
        if not any(var in source for var in self.inputs):
            return self
        return replace(self, args={name: _mapped(arg, source) for name, arg in self.args.items()})

    def value(self, name: str, default: object = None) -> object:
        """A constant argument as plain Python; `default` where it is absent. Asserts it is a Literal."""
        arg = self.args.get(name)
        if arg is None:
            return default
        assert isinstance(arg, Literal), f"{self.name}: {name} is not a constant"
        return arg.python()


@dataclass(frozen=True)
class Block:
    """Ops in order and the values that leave them; nested in `cond` and `while_loop`."""

    inputs: tuple[Var, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Var, ...]
    name: str = ""

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Function:
    """A named entry: inputs (tensors and states), ops, outputs. `attrs` holds what `[...]` behind the
    parameters says (flexible shapes)."""

    name: str
    inputs: tuple[Var, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Var, ...]
    opset: str = "ios18"
    attrs: Mapping[str, Literal] = field(default_factory=dict)

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def producer(self) -> dict[Var, Op]:
        """The op that defines a Var; inputs are absent."""
        return {var: op for op in self.ops for var in op.outputs}

    @cached_property
    def uses(self) -> dict[Var, tuple[Op, ...]]:
        """The ops that read a Var as an argument, in order; a Var that nothing reads is absent."""
        found: dict[Var, list[Op]] = {}
        for op in self.ops:
            for var in dict.fromkeys(op.inputs):
                found.setdefault(var, []).append(op)
        return {var: tuple(ops) for var, ops in found.items()}


#: The pair of buildInfo that names the default function: text has no other place for it, and Apple's parsers let
#: pairs pass that they do not know (mil-text.md, section 1).
DEFAULT_FUNCTION = "torchane-default-function"

#: What our own programs say of their maker; Apple's parsers want the four pairs (mil-text.md, section 1).
BUILD_INFO: tuple[tuple[str, str], ...] = (
    ("coremlc-component-MIL", "3510.2.1"),
    ("coremlc-version", "3505.4.1"),
    ("coremltools-component-milinternal", ""),
    ("coremltools-version", "9.0"),
)


@dataclass(frozen=True)
class Program:
    """What one file holds. Compiled training programs have one function, `main`, reached as
    `program.inputs`, `.ops`, `.outputs`; `program.with_(ops=...)` is a copy with those changed.

    default_function: of several, the one that runs if none is chosen; None: `main` does. In text it is a pair of buildInfo.
    """

    functions: tuple[Function, ...]
    version: str = "1.3"
    build_info: tuple[tuple[str, str], ...] = BUILD_INFO
    attrs: Mapping[str, Literal] = field(default_factory=dict)
    default_function: str | None = None

    __hash__ = None  # type: ignore[assignment]

    @property
    def main(self) -> Function:
        """The only function, the default one, or `main`. Raises UsageError where there are several and none of these."""
        if len(self.functions) == 1:
            return self.functions[0]
        wanted = self.default_function or "main"
        for function in self.functions:
            if function.name == wanted:
                return function
        names = ", ".join(function.name for function in self.functions) or "none"
        raise UsageError(f"the program has no function {wanted}; it has {names}. Choose one by its name.")

    @property
    def inputs(self) -> tuple[Var, ...]:
        return self.main.inputs

    @property
    def ops(self) -> tuple[Op, ...]:
        return self.main.ops

    @property
    def outputs(self) -> tuple[Var, ...]:
        return self.main.outputs

    @property
    def names(self) -> list[str]:
        """Every name that main gives to a value, those within blocks left out."""
        return [var.name for var in self.inputs] + [var.name for op in self.ops for var in op.outputs]

    def with_(self, **changes: object) -> "Program":
        """A copy whose main function has `changes` (inputs, ops, outputs, name, opset, attrs)."""
        main = replace(self.main, **changes)  # type: ignore[arg-type]
        default = self.default_function if self.default_function != self.main.name else main.name
        functions = tuple(main if f is self.main else f for f in self.functions)
        return replace(self, functions=functions, default_function=default)


def walk(ops: Iterable[Op]) -> Iterator[Op]:
    """Every op, nested blocks included, in order of execution."""
    for op in ops:
        yield op
        for block in op.blocks:
            yield from walk(block.ops)


def _flat(arg: Arg) -> tuple[Var | Literal, ...]:
    return arg if isinstance(arg, tuple) else (arg,)


def _mapped(arg: Arg, source: Mapping[Var, Var | Literal]) -> Arg:
    if isinstance(arg, tuple):
        return tuple(source.get(item, item) if isinstance(item, Var) else item for item in arg)
    return source.get(arg, arg) if isinstance(arg, Var) else arg
