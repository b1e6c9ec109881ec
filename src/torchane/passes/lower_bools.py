"""Compute with masks of 0 and 1 instead of bools.

    c = greater(x, 0)                        p = max(x, 0)
    y = select(c, a, b)            ->        c = real_div(p, max(p, 2^-24))       # 1 where x > 0, else 0, exactly
    m = cast(c, fp16)                        y = a * c + b * (1 - c);  m = c
    less, equal, ..: from greater            and: product;  or: maximum;  not: 1 - c;  xor: |a - b|
    sign(x)                        ->        greater(x, 0) - greater(0, x)
A value of bools becomes one of floats. A condition that is constant turns into factors 0 and 1, and literal choices
into one constant; -inf in a literal choice, as masks have it, becomes -30000, which a softmax takes for nothing
as well. Compared are differences: x > y is x - y > 0, exact in fp16 but where the difference overflows.
Exact for finite values; 0 * inf is NaN where a select had dropped the inf. Comparisons of ints stay, to be refused.
"""

import numpy as np

from torchane.abi.numbers import EXCLUDED, FP16_SMALLEST
from torchane.chips import Chip
from torchane.mil.build import Builder
from torchane.mil.ir import Arg, Literal, Op, Program, Var, literal
from torchane.mil.ops.support import broadcast
from torchane.mil.types import BOOL, FP16, DType
from torchane.passes.rewrite import Rule, rewrite, scalar


def lower_bools(program: Program, chip: Chip | None = None) -> Program:
    """Every bool, unless the chip takes `select`."""
    return program if chip is not None and chip.takes("select") else rewrite(program, RULES, retyped=True)


def _greater_than_zero(b: Builder, x: Var) -> Var:
    above = b.maximum(x=x, y=0.0)
    return b.real_div(x=above, y=b.maximum(x=above, y=FP16_SMALLEST))


def _difference(b: Builder, x: Arg, y: Arg) -> Var | None:
    """x - y; None unless both are floats."""
    if not (x.type.dtype.is_float and y.type.dtype.is_float):
        return None
    if isinstance(x, Var) and scalar(y) == 0.0 and broadcast("sub", x.type, y.type) == x.shape:
        return x
    return b.sub(x=x, y=y)


def _compared(swapped: bool, inverted: bool) -> Rule:
    """x > y; y > x if swapped; and the opposite of that if inverted."""

    def rule(b: Builder, op: Op) -> Var | None:
        x, y = (op.args["y"], op.args["x"]) if swapped else (op.args["x"], op.args["y"])
        difference = _difference(b, x, y)
        if difference is None:
            return None
        above = _greater_than_zero(b, difference)
        return _not(b, above) if inverted else above

    return rule


def _apart(inverted: bool) -> Rule:
    """x != y, or x == y if inverted."""

    def rule(b: Builder, op: Op) -> Var | None:
        difference = _difference(b, op.args["x"], op.args["y"])
        if difference is None:
            return None
        apart = _greater_than_zero(b, b.abs(x=difference))
        return _not(b, apart) if inverted else apart

    return rule


def _not(b: Builder, mask: Var | Literal) -> Var | Literal:
    if isinstance(mask, Literal):
        return literal(1.0 - mask.value, mask.type.dtype)
    return b.sub(x=literal(1.0, mask.type.dtype), y=mask)


def _mask(arg: Arg, dtype: DType = FP16) -> Var | Literal:
    """A condition as numbers: a constant one becomes a constant mask."""
    return literal(arg.value, dtype) if isinstance(arg, Literal) and arg.type.dtype == BOOL else arg


def _logical_not(b: Builder, op: Op) -> Var | Literal:
    return _not(b, _mask(op.args["x"]))


def _logical_and(b: Builder, op: Op) -> Var:
    return b.mul(x=_mask(op.args["x"]), y=_mask(op.args["y"]))


def _logical_or(b: Builder, op: Op) -> Var:
    return b.maximum(x=_mask(op.args["x"]), y=_mask(op.args["y"]))


def _logical_xor(b: Builder, op: Op) -> Var:
    return b.abs(x=b.sub(x=_mask(op.args["x"]), y=_mask(op.args["y"])))


def _cast(b: Builder, op: Op) -> Var | None:
    """From bools: the mask itself. To bools: what is not 0."""
    x = op.args["x"]
    if not isinstance(x, Var) or not x.type.dtype.is_float:
        return None
    if op.output.type.dtype == BOOL:
        return _greater_than_zero(b, b.abs(x=x))
    return x if x.type == op.output.type else None


def _select(b: Builder, op: Op) -> Var | Literal | None:
    dtype = op.output.type.dtype
    if not dtype.is_float:
        return None
    mask = _mask(op.args["cond"], dtype)
    if scalar(op.args["b"]) == 0.0:
        result = _chosen(b, op.args["a"], mask)
    elif scalar(op.args["a"]) == 0.0:
        result = _chosen(b, op.args["b"], _not(b, mask))
    else:
        result = b.add(x=_chosen(b, op.args["a"], mask), y=_chosen(b, op.args["b"], _not(b, mask)))
    if result.type == op.output.type:
        return result
    return b.mul(x=result, y=literal(np.ones(op.output.shape), dtype))


def _chosen(b: Builder, choice: Var | Literal, mask: Var | Literal) -> Var | Literal:
    """choice * mask, with 0 where the mask is, whatever a literal choice holds."""
    if isinstance(choice, Var):
        return b.mul(x=choice, y=mask)
    finite = np.where(np.isneginf(choice.value), EXCLUDED, choice.value.astype(np.float64))
    if isinstance(mask, Literal):
        return literal(np.where(mask.value != 0, finite, 0.0), choice.type.dtype)
    return b.mul(x=mask, y=literal(finite, choice.type.dtype))


def _sign(b: Builder, op: Op) -> Var:
    x = op.args["x"]
    below = b.maximum(x=b.mul(x=x, y=-1.0), y=0.0)
    return b.sub(x=_greater_than_zero(b, x), y=b.real_div(x=below, y=b.maximum(x=below, y=FP16_SMALLEST)))


RULES: dict[str, Rule] = {
    "greater": _compared(swapped=False, inverted=False),
    "less": _compared(swapped=True, inverted=False),
    "less_equal": _compared(swapped=False, inverted=True),
    "greater_equal": _compared(swapped=True, inverted=True),
    "not_equal": _apart(inverted=False),
    "equal": _apart(inverted=True),
    "logical_not": _logical_not,
    "logical_and": _logical_and,
    "logical_or": _logical_or,
    "logical_xor": _logical_xor,
    "select": _select,
    "cast": _cast,
    "sign": _sign,
}
