"""Which rule lays out which op.

element-wise, concat    one order for all operands                             elementwise
reductions, softmax     any order for sums; the axis last for the others       reduce
moves                   transpose, reshape, identity, slices, pads             moves
matmul                  the order of its result is free                        matmul
conv                    [N, C, H, W] as it is
"""

from collections.abc import Iterator

from torchane.errors import CompileError
from torchane.mil.ir import Literal, Op, Var
from torchane.mil.kinds import OpKind
from torchane.mil.ops import activation, elementwise, reduce, unary
from torchane.passes.layout.elementwise import CONCAT, ELEMENTWISE
from torchane.passes.layout.emit import Emitter, Rule
from torchane.passes.layout.matmul import MATMUL
from torchane.passes.layout.moves import IDENTITY, PAD, RESHAPE, SLICE, TRANSPOSE
from torchane.passes.layout.order import natural
from torchane.passes.layout.reduce import REDUCTION, SOFTMAX
from torchane.passes.layout.ways import Orders, Way, operands


def rule_of(op: Op) -> Rule:
    """Raises CompileError for an op that no rule knows."""
    rule = _RULES.get(op.kind.name)
    if rule is None or len(op.outputs) != 1 or op.blocks:
        raise CompileError(
            f"{op.name}: {op.kind.name} has no rank-4 form. An earlier pass has to write it in other ops, or capture "
            f"has to leave it to PyTorch. Known: {', '.join(sorted(_RULES))}."
        )
    return rule


def _conv_options(op: Op, orders: Orders, weights: frozenset[Var]) -> Iterator[Way]:
    if op.output.rank != 4:
        raise CompileError(
            f"{op.name}: conv to {op.output.type} is not over two axes of space. Reshape to rank 4 before."
        )
    yield Way(tuple(natural(tensor.shape) for tensor in operands(op)), natural(op.output.shape))


def _emit_conv(e: Emitter, op: Op, way: Way) -> None:
    """Constants stay as they are: the bias (O,) is no rank-4 tensor."""
    reads = tuple(
        tensor if isinstance(tensor, Literal) else e.read(tensor, order, tensor.shape)  # type: ignore[arg-type]
        for tensor, order in zip(operands(op), way.reads)
    )
    e.define(op.output, way.writes, e.emit(op, reads))


def _kinds(*families: object) -> set[str]:
    return {kind.name for family in families for kind in vars(family).values() if isinstance(kind, OpKind)}


#: In the family of activations, and not element-wise: constants per channel meet axis 1.
_PER_CHANNEL = {"prelu", "softplus_parametric"}
_ELEMENTWISE = (_kinds(elementwise, unary, activation) | {"cast"}) - _PER_CHANNEL
#: The positions of extremes are integers, which no program holds.
_REDUCTIONS = _kinds(reduce) - {"reduce_argmax", "reduce_argmin"}

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, ELEMENTWISE),
    **dict.fromkeys(_REDUCTIONS, REDUCTION),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims", "flatten2d"), RESHAPE),
    **dict.fromkeys(("slice_by_size", "slice_by_index"), SLICE),
    "concat": CONCAT,
    "conv": Rule(_conv_options, _emit_conv),
    "identity": IDENTITY,
    "matmul": MATMUL,
    "pad": PAD,
    "softmax": SOFTMAX,
    "transpose": TRANSPOSE,
}

#: Ops that only give a value another name or shape.
MOVES = frozenset({"reshape", "squeeze", "expand_dims", "flatten2d", "transpose", "identity", "cast"})
