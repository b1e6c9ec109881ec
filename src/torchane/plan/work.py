"""What a program does, in the layers that the cost model prices: one list for each op of its main function.

    conv, weight constant     -> conv(inner, outer, columns)          matmul, one operand constant -> linear
    matmul of two values      -> matmul, once for each of its batch; dynamic where one is an input, moved at most
    softmax                   -> softmax
    reshape, squeeze, ..      -> nothing: no number moves             everything else              -> pointwise
Reads any well-formed program: what a chip says of it is `chips.refusals`' business.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torchane.chips.points import Layer
from torchane.errors import CompileError
from torchane.mil import ops as _ops  # noqa: F401  (fills the op table)
from torchane.mil.build import arguments, typed
from torchane.mil.constants import inline_constants
from torchane.mil.ir import Arg, Function, Literal, Op, Program, Var
from torchane.mil.types import STRING, StateType, TensorType

#: Ops that only give numbers another shape.
_VIEWS = frozenset({"const", "reshape", "expand_dims", "squeeze", "identity", "flatten2d", "reshape_like", "shape"})
#: Ops that move numbers and change none.
_MOVES = _VIEWS | {"transpose", "slice_by_size", "slice_by_index", "cast", "split"}
#: Columns for which the weights of a matmul are about read once; decides which operand counts as the weights.
_TILE = 64


@dataclass(frozen=True)
class OpWork:
    """One op: its layers, and what about it no published figure speaks of ("" if nothing)."""

    name: str
    kind: str
    layers: tuple[Layer, ...]
    unseen: str = ""


@dataclass(frozen=True)
class ProgramWork:
    """What one run reads, does and writes. Surfaces are the ports; states stay where they are."""

    ops: tuple[OpWork, ...]
    bytes_in: int
    bytes_out: int
    fp32_surfaces: bool

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(layer for op in self.ops for layer in op.layers)


def work_of(program: Program) -> ProgramWork:
    """Raises CompileError for sizes that only the run tells, and for control flow."""
    if len(program.functions) != 1:
        names = ", ".join(function.name for function in program.functions)
        raise CompileError(f"the program has the functions {names}; price one at a time (--function NAME).")
    main = inline_constants(program).functions[0]
    stored = _stored_bits(main)
    given = _given(main)
    ops = tuple(_op_work(op, stored, given) for op in main.ops if op.kind.name not in _VIEWS and not _is_constant(op))
    surfaces = [var for var in main.inputs if not isinstance(var.type, StateType)]
    ports = (*surfaces, *main.outputs)
    return ProgramWork(
        ops,
        sum(_tensor(var, f"the input {var.name}").size_bytes for var in surfaces),
        sum(_tensor(var, f"the output {var.name}").size_bytes for var in main.outputs),
        any(_tensor(var, var.name).dtype.mil_name == "fp32" for var in ports),
    )


def _is_constant(op: Op) -> bool:
    return op.kind.name.startswith("constexpr_")


def _stored_bits(main: Function) -> Mapping[Var, float]:
    """Bits of a number, as stored, of every compressed constant."""
    found = {}
    for op in main.ops:
        if _is_constant(op):
            given = (*op.args.values(), *op.attrs.values())
            items = [item for arg in given for item in (arg if isinstance(arg, tuple) else (arg,)) if isinstance(item, Literal)]
            tensors = [item.type for item in items if isinstance(item.type, TensorType) and item.type.dtype is not STRING]
            stored = sum(type_.size_bytes for type_ in tensors)
            found.update((var, 8 * stored / max(_tensor(var, op.name).size, 1)) for var in op.outputs)
    return found


def _given(main: Function) -> frozenset[Var]:
    """Inputs, and what only moves their numbers."""
    found = set(main.inputs)
    for op in main.ops:
        if op.kind.name in _MOVES and op.inputs and op.inputs[0] in found:
            found.update(op.outputs)
    return frozenset(found)


def _op_work(op: Op, stored: Mapping[Var, float], given: Collection[Var]) -> OpWork:
    name = op.kind.name
    if op.blocks:
        raise CompileError(f"{op.name} ({name}) holds ops of its own; a program with control flow has no price. Unroll it.")
    for var in op.outputs:
        _tensor(var, f"{op.name} ({name})")
    if name == "conv":
        return _conv(op, stored, given)
    if name in ("matmul", "linear"):
        return _matmul(op, stored, given)
    if name == "softmax":
        return OpWork(op.name, name, (_elements("softmax", op.args["x"]),))
    macs = _macs(op)
    if macs:
        out = _tensor(op.outputs[0], op.name)
        columns = out.shape[-1] if out.shape else 1
        inner = max(1, round(macs / max(out.size, 1)))
        layer = Layer("matmul", 1, inner, max(1, out.size // columns), columns)
        return OpWork(op.name, name, (layer,), f"{name} was never measured as such")
    if not op.kind.known:
        return OpWork(op.name, name, (_largest(op),), f"torchane knows no op {name}; priced as element-wise")
    return OpWork(op.name, name, (_largest(op),))


def _conv(op: Op, stored: Mapping[Var, float], given: Collection[Var]) -> OpWork:
    weight, x, out = op.args["weight"], op.args["x"], _tensor(op.output, op.name)
    shape = _tensor(weight, f"{op.name}: its weight").shape
    groups = _tensor(x, op.name).shape[1] // shape[1]
    columns = out.shape[0] * math.prod(out.shape[2:])
    layer = Layer("conv", groups, shape[1] * math.prod(shape[2:]), shape[0] // groups, columns, 1, _bits(weight, stored))
    if not _constant(weight, stored):
        return OpWork(op.name, "conv", (_as_matmul(layer, weight in given),), "a conv whose weight is a value of run time was never measured")
    unseen = f"a conv of {groups} groups was never measured" if groups > 1 else ""
    return OpWork(op.name, "conv", (layer,), unseen)


def _matmul(op: Op, stored: Mapping[Var, float], given: Collection[Var]) -> OpWork:
    """Which operand counts as the weights: the constant one, else the one that is cheaper to read again."""
    if op.kind.name == "linear":
        x, y = op.args["x"], op.args["weight"]
        k, n = _tensor(x, op.name).shape[-1], _tensor(y, op.name).shape[0]
        m = _tensor(x, op.name).size // k
        batch = 1
    else:
        x, y = op.args["x"], op.args["y"]
        out = _tensor(op.output, op.name)
        m, n = out.shape[-2:] if len(out.shape) > 1 else (1, out.shape[-1] if out.shape else 1)
        k = _macs(op) // max(out.size, 1)
        batch = out.size // max(m * n, 1)
        sizes = _tensor(x, op.name).size, _tensor(y, op.name).size
        if not _constant(x, stored) and not _constant(y, stored):
            return OpWork(op.name, op.kind.name, (product(m, n, k, batch, sizes, (x in given, y in given)),))
        m, n, batch = _flat(m, n, k, batch, sizes)
    if _constant(y, stored):
        return OpWork(op.name, op.kind.name, (Layer("linear", batch, k, n, m, 1, _bits(y, stored)),))
    if _constant(x, stored):
        return OpWork(op.name, op.kind.name, (Layer("linear", batch, k, m, n, 1, _bits(x, stored)),))
    return OpWork(op.name, op.kind.name, (product(m, n, k, batch, (m * k, n * k), (x in given, y in given)),))


def product(m: int, n: int, k: int, batch: int, sizes: Sequence[int], given: Sequence[bool]) -> Layer:
    """(batch, m, k) @ (batch, k, n), both values of run time. sizes: of the two operands, as they are; given: which of them comes in.
    What is cheaper to read again counts as the weights."""
    m, n, batch = _flat(m, n, k, batch, sizes)
    by_y, by_x = Layer("linear", batch, k, n, m), Layer("linear", batch, k, m, n)
    is_given, layer = min((given[1], by_y), (given[0], by_x), key=lambda pair: _traffic(pair[1]))
    return _as_matmul(layer, is_given)


def _flat(m: int, n: int, k: int, batch: int, sizes: Sequence[int]) -> tuple[int, int, int]:
    """m, n and batch: one operand for the whole batch makes the rows of the other one tall matrix."""
    if sizes[1] == k * n:
        return m * batch, n, 1
    if sizes[0] == m * k:
        return m, n * batch, 1
    return m, n, batch


def _as_matmul(layer: Layer, is_given: bool) -> Layer:
    return Layer("dynamic" if is_given else "matmul", layer.count, layer.inner, layer.outer, layer.columns)


def _traffic(layer: Layer) -> float:
    return layer.weight_bytes * math.ceil(layer.columns / _TILE)


def _constant(arg: Arg, stored: Mapping[Var, float]) -> bool:
    return isinstance(arg, Literal) or arg in stored


def _bits(arg: Arg, stored: Mapping[Var, float]) -> float:
    return stored.get(arg, 16.0) if isinstance(arg, Var) else 16.0


def _largest(op: Op) -> Layer:
    """Element-wise work on the largest tensor that the op reads or writes; constants cost where they are read."""
    operands = [item for arg in op.args.values() for item in (arg if isinstance(arg, tuple) else (arg,)) if isinstance(item, Var)]
    sized = [value for value in (*op.outputs, *operands) if isinstance(value.type, TensorType)]
    return _elements("pointwise", max(sized, key=lambda value: _tensor(value, op.name).size))


def _elements(form: str, value: Arg) -> Layer:
    type_ = _tensor(value, "an operand")
    columns = type_.shape[-1] if type_.shape else 1
    return Layer(form, 1, 1, type_.size // max(columns, 1), columns)


def _macs(op: Op) -> int:
    if not op.kind.known:
        return 0
    return op.kind.macs({key: typed(op.kind, key, arg) for key, arg in arguments(op).items()})


def _tensor(value: Arg, what: str) -> TensorType:
    type_ = value.type  # type: ignore[union-attr]
    if not isinstance(type_, TensorType):
        raise CompileError(f"{what} is a {type_}, which has no price: programs hold tensors.")
    if not type_.is_fixed:
        raise CompileError(f"{what} is a {type_}: a size that only the run tells has no price. Fix it in the program's inputs.")
    return type_
