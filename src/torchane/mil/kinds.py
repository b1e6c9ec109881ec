"""What an op is: a name with its rules beside it, and the one table in which all are found.

    matmul = OpKind("matmul", operands=("x", "y"))

    @matmul.infers                       # TensorTypes of the operands, values of everything else
    def _(x: TensorType, y: TensorType, transpose_x: bool = False, transpose_y: bool = False) -> TensorType: ...

    @matmul.evaluates                    # NumPy arrays of the operands, values of everything else
    def _(x, y, transpose_x=False, transpose_y=False) -> np.ndarray: ...

`operands` are the arguments that may be values known only at run time; every other argument of the
signature is a constant and reaches both rules as plain Python (bool, int, float, str, tuple). Those in
`dynamic` (the `shape` of reshape, the `begin` of a slice) may also be known only at run time: the type
rule is then given their TensorType. (An operand that is dynamic too reaches it as a Literal if constant:
range_1d needs type and value, matmul to know that it is one.) The signature's defaults are the op's
defaults, and its annotations are enforced before a type rule runs. An operand that holds several values
(`values` of concat) is passed as a tuple. The rules of a `nested` op (cond, while_loop) also take
`blocks`: the Blocks to infer, callables from values to values to evaluate. An op without rules can be
read, kept and printed, not typed or run.
"""

import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, get_args, get_origin

import numpy as np

from torchane.errors import CompileError

#: Every op by name; filled by the modules of `torchane.mil.ops` when they are imported.
KINDS: dict[str, "OpKind"] = {}


class OpKind:
    """One op. Kinds are compared by name, so an op of a file that we do not know equals itself."""

    def __init__(
        self,
        name: str,
        operands: tuple[str, ...] = ("x",),
        *,
        dynamic: tuple[str, ...] = (),
        nested: bool = False,
        known: bool = True,
    ):
        self.name = name
        self.operands = operands
        self.dynamic = dynamic
        self.nested = nested
        self.known = known
        self.signature = inspect.Signature()
        self._fits: dict[str, Callable[[Any], bool]] = {}
        self._needs: frozenset[str] = frozenset()
        self._infer: Callable[..., Any] | None = None
        self._evaluate: Callable[..., Any] | None = None
        self._cost: Callable[..., int] | None = None
        if known:
            assert name not in KINDS, f"the op {name} has two homes"
            KINDS[name] = self

    def infers(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Registers the type rule; it raises CompileError where the operands do not meet."""
        self._infer = rule
        self.signature = inspect.signature(rule)
        parameters = self.signature.parameters
        self._fits = {name: _fits(parameter.annotation) for name, parameter in parameters.items()}
        self._needs = frozenset(name for name, parameter in parameters.items() if parameter.default is parameter.empty)
        return rule

    def evaluates(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Registers the NumPy rule: slow, plain, the oracle of every other implementation."""
        self._evaluate = rule
        return rule

    def costs(self, rule: Callable[..., int]) -> Callable[..., int]:
        """Registers the multiply-adds of one run, from the same arguments as `infers`. Absent: 0."""
        self._cost = rule
        return rule

    @property
    def usage(self) -> str:
        """The op's name and arguments, for messages."""
        return f"{self.name}{self.signature}".partition(" -> ")[0].replace("torchane.mil.types.", "")

    @property
    def has_rules(self) -> bool:
        return self._infer is not None and self._evaluate is not None

    def infer(self, args: Mapping[str, Any]) -> tuple[Any, ...]:
        """The types of the results. Raises CompileError for unknown, missing or unfit arguments."""
        for key, value in args.items():
            fits = self._fits.get(key)
            if fits is not None and not fits(value):
                shown = f"a {value}" if key in self.operands else repr(value)
                raise CompileError(f"{self.name}: {key} is {shown}. Its signature is {self.usage}.")
        result = self._call(self._infer, "type rule", args)
        return result if isinstance(result, tuple) else (result,)

    def evaluate(self, args: Mapping[str, Any]) -> tuple[Any, ...]:
        """The results as NumPy arrays (or strings, lists, ...). Overflow and 0/0 give inf and NaN, unwarned."""
        with np.errstate(all="ignore"):
            result = self._call(self._evaluate, "NumPy rule", args)
        return result if isinstance(result, tuple) else (result,)

    def float_defaults(self, args: Mapping[str, Any]) -> dict[str, float]:
        """The defaults of the float arguments that `args` leaves out: epsilons, mostly."""
        return {
            name: parameter.default
            for name, parameter in self.signature.parameters.items()
            if isinstance(parameter.default, float) and name not in args
        }

    def macs(self, args: Mapping[str, Any]) -> int:
        """Multiply-adds of one run; 0 for ops that multiply nothing."""
        return 0 if self._cost is None else self._cost(**args)

    def _call(self, rule: Callable[..., Any] | None, what: str, args: Mapping[str, Any]) -> Any:
        if rule is None:
            raise CompileError(f"{self.name}: torchane has no {what} for this op; `torchane inspect` can show it.")
        if not (self._needs <= args.keys() <= self._fits.keys()):
            try:
                self.signature.bind(**args)  # slow, and knows the words
            except TypeError as error:
                raise CompileError(f"{self.name}: {error}. Its signature is {self.usage}.") from None
        return rule(**args)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpKind) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"OpKind({self.name})"


def kind_of(name: str) -> OpKind:
    """The registered kind, or a bare one that keeps an unknown op readable and printable."""
    return KINDS.get(name) or OpKind(name, known=False)


def _fits(annotation: Any) -> Callable[[Any], bool]:
    """Whether a value is what an annotation of a rule says: a class, a union, `tuple[item, ...]`, or None.
    An int passes for a float, a bool does not pass for an int."""
    if isinstance(annotation, UnionType):
        choices = tuple(map(_fits, get_args(annotation)))
        return lambda value: any(fits(value) for fits in choices)
    if get_origin(annotation) is tuple:
        item_fits = _fits(get_args(annotation)[0])
        return lambda value: isinstance(value, tuple) and all(map(item_fits, value))
    if annotation in (inspect.Parameter.empty, Any):
        return lambda value: True
    if annotation is None:
        return lambda value: value is None
    if annotation in (int, float):
        numbers = (int, float) if annotation is float else int
        return lambda value: isinstance(value, numbers) and not isinstance(value, bool)
    return lambda value: isinstance(value, annotation)
