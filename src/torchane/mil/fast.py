"""`fast`: the twin's arithmetic on processors that multiply bf16 numbers. It is `exact`, but for products of matrices.

    evaluate(program, inputs, arithmetic="fast")
    x ── to bf16 ──┐
                   ├── products, sums in float64 ── once to fp16 ──► x y        bf16 keeps 8 of fp16's 11 digits
    y ── to bf16 ──┘

A product with a constant of zeros and powers of two moves numbers or adds them up (a cut, a concatenation, a sum): its operands are
not rounded. Reference for csrc/isa/matmul_bf16.cpp and matmul_amx.cpp.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from torchane.mil.constants import inline_constants
from torchane.mil.evaluate import ARITHMETICS, EXACT
from torchane.mil.formats import narrowed, widened
from torchane.mil.ir import Function, Literal, Op, Program
from torchane.mil.types import DType, TensorType

#: The ops that are products of matrices, and their two factors.
FACTORS = {"matmul": ("x", "y"), "conv": ("x", "weight"), "linear": ("x", "weight")}


def rounds(op: Op) -> bool:
    """Whether this product's operands are rounded to bf16. Constants are inline."""
    return not any(_only_moves(op.args.get(name)) for name in FACTORS[op.kind.name])


def _only_moves(factor: Any) -> bool:
    """A constant whose entries are 0 or a power of two, of either sign."""
    if not isinstance(factor, Literal) or not isinstance(factor.value, np.ndarray) or not isinstance(factor.type, TensorType):
        return False
    fractions, _ = np.frexp(widened(factor.value, factor.type.dtype))
    return bool(np.isin(np.abs(fractions), (0.0, 0.5)).all())


def _product(op: Op, args: Mapping[str, Any]) -> tuple[Any, ...]:
    if rounds(op):
        args = {**args, **{name: widened(narrowed(args[name], DType.BF16), DType.BF16) for name in FACTORS[op.kind.name]}}
    return op.kind.evaluate(args)


def _inline(function: Function) -> Function:
    """With the constants where `rounds` looks for them."""
    return inline_constants(Program((function,))).functions[0]


FAST = replace(EXACT, name="fast", rules=dict.fromkeys(FACTORS, _product), prepares=_inline)
ARITHMETICS["fast"] = FAST
