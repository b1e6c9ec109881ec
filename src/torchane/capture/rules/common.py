"""What several families share: constants that fit the element type, shapes, exact broadcasting.

Literals take the dtype of the value beside them, so a rule runs in fp16 and, for its tests, in fp64.
fp16 ends at 65504 and below 2**-24: `number` keeps constants finite, `scaled` multiplies by constants
outside fp16's normal range in exact steps of powers of two.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch.fx import Node

from torchane.abi.numbers import EXCLUDED, FP16_MAX, FP16_SMALLEST, FP16_SMALLEST_NORMAL, LEFT_OUT, MASKED, SUM_MAX
from torchane.capture.rules.registry import NoRule, Value
from torchane.mil.build import Builder
from torchane.mil.ir import Literal, Var
from torchane.mil.types import FP16, DType, TensorType

#: The largest finite and the smallest positive number of a type, for the types that programs hold.
_LARGEST = {FP16: FP16_MAX}
_SMALLEST = {FP16: FP16_SMALLEST}
_SMALLEST_NORMAL = {FP16: FP16_SMALLEST_NORMAL}


def of_one_dtype(node: Node) -> str | None:
    """Why an op whose operands must have one dtype is left to PyTorch, which refuses others."""
    kinds = {str(source.meta["val"].dtype) for source in node.all_input_nodes}
    return f"its operands are {' and '.join(sorted(kinds))}, which PyTorch does not take either" if len(kinds) > 1 else None


def dtype_of(x: Value) -> DType:
    assert isinstance(x.type, TensorType), f"a {x.type} has no element type"
    return x.type.dtype


def float_dtype(*operands: object) -> DType:
    """The element type of the first tensor among the operands; fp16 where there is none."""
    return next((dtype_of(item) for item in operands if isinstance(item, Var | Literal)), FP16)


def number(value: float, dtype: DType) -> Literal:
    """A scalar constant, clamped to the largest finite number of `dtype`; NaN stays NaN."""
    largest = _LARGEST.get(dtype)
    clamped = float(value) if largest is None or math.isnan(value) else min(max(float(value), -largest), largest)
    return Literal(TensorType(dtype), np.asarray(clamped, dtype.numpy))


def constant(array: np.ndarray, dtype: DType) -> Literal:
    """A tensor constant in `dtype`, clamped like `number`."""
    largest = _LARGEST.get(dtype, math.inf)
    return Literal(TensorType(dtype, array.shape), np.clip(array, -largest, largest).astype(dtype.numpy))


def filled(shape: Sequence[int], value: float, dtype: DType) -> Literal:
    """A constant that says `value` everywhere; it occupies one element of memory."""
    scalar = number(value, dtype).value
    return Literal(TensorType(dtype, tuple(shape)), np.broadcast_to(scalar, tuple(shape)))  # type: ignore[arg-type]


def epsilon(value: float, dtype: DType) -> Literal:
    """A number that guards a division: a positive one is never rounded to zero."""
    return number(max(value, _SMALLEST.get(dtype, 0.0)) if value > 0 else value, dtype)


def uniform(x: object) -> float | None:
    """The one value of a constant, Python number or filled Literal; None for everything else."""
    if isinstance(x, bool | int | float):
        return float(x)
    if isinstance(x, Literal) and isinstance(x.value, np.ndarray) and x.value.size:
        first = x.value.flat[0]
        stretched = all(stride == 0 for stride, size in zip(x.value.strides, x.value.shape) if size > 1)
        if stretched or (x.value == first).all():
            return float(first)
    return None


def is_masking(value: float | None) -> bool:
    """A number that means "not at all" before a softmax: -inf, finfo.min, -1e9, -65504.

    Milder numbers are selected as they are.
    """
    return value is not None and value <= -32768


def penalty_for(value: float) -> float:
    """What programs write for a masking number."""
    return EXCLUDED if value == -math.inf else MASKED


def scaled(b: Builder, x: Value, factor: float) -> Value:
    """x * factor. A factor outside fp16's normal range is applied in steps, each but one a power of two."""
    if factor == 1:
        return x
    dtype = dtype_of(x)
    if (same := uniform(x)) is not None:
        return filled(sizes(x), _held(same * factor, dtype), dtype)
    low, high = _SMALLEST_NORMAL.get(dtype, 0.0), _LARGEST.get(dtype, math.inf)
    if math.isfinite(factor) and factor != 0:
        while abs(factor) < low:
            x, factor = b.mul(x=x, y=number(low, dtype)), factor / low
        while abs(factor) > high and abs(factor) < 1e30:  # beyond: a mask's "minus infinity", clamped
            x, factor = b.mul(x=x, y=number(1 / low, dtype)), factor * low
    return b.mul(x=x, y=number(factor, dtype)) if factor != 1 else x


def _held(value: float, dtype: DType) -> float:
    """A constant that was computed from two: a mask's, or one that its type holds."""
    if _LARGEST.get(dtype, math.inf) < abs(value) < -LEFT_OUT:
        raise NoRule(f"a constant is {value:g}, and programs hold numbers up to 65504")
    return value


def positive(b: Builder, x: Value) -> Var:
    """1 where x > 0, else 0; exact, NaN-free for finite x, from a maximum and a division.

    With y = max(x, 0) it is y / max(y, t), t the smallest positive number: y / y or 0 / t.
    """
    dtype = dtype_of(x)
    above = b.maximum(x=x, y=number(0, dtype))
    return b.real_div(x=above, y=b.maximum(x=above, y=number(_SMALLEST.get(dtype, 2.0**-1022), dtype)))


def one_minus(b: Builder, x: Value) -> Var:
    return b.sub(x=number(1, dtype_of(x)), y=x)


def axis_of(dim: int, rank: int) -> int:
    """A torch dim counted from the front; rank 0 is treated as torch does, as one axis."""
    return dim % rank if rank else 0


def axes_of(dim: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """torch's dim argument of a reduction as sorted axes; None and [] are all of them."""
    if rank == 0:
        return ()
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return tuple(range(rank))
    return tuple(sorted(axis_of(item, rank) for item in ((dim,) if isinstance(dim, int) else dim)))


def why_sum_of_exponentials_overflows(shape: Sequence[int], dim: int | Sequence[int] | None) -> str | None:
    """Each exp(x - max) is 1 at most, and all are where all x are equal."""
    count = math.prod(shape[axis] for axis in axes_of(dim, len(shape)))
    return None if count <= SUM_MAX else f"its sum of {count:,} exponentials may pass {SUM_MAX:,.0f}, the largest of a program"


def sizes(x: Value) -> tuple[int, ...]:
    """The shape, all sizes known."""
    assert None not in x.shape, f"{x.type} has unknown sizes"
    return tuple(x.shape)  # type: ignore[arg-type]


def reshaped(b: Builder, x: Value, shape: Sequence[int]) -> Value:
    """x in row-major order under another shape; one size may be -1. No op where nothing changes."""
    count = math.prod(sizes(x))
    wanted = list(shape)
    if -1 in wanted:
        wanted[wanted.index(-1)] = count // math.prod(size for size in wanted if size != -1)
    if tuple(wanted) == x.shape:
        return x
    value = uniform(x)
    return filled(wanted, value, dtype_of(x)) if value is not None else b.reshape(x=x, shape=tuple(wanted))


def permuted(b: Builder, x: Value, perm: Sequence[int]) -> Value:
    """Axis i of the result is axis perm[i] of x. No op where nothing moves."""
    rank = len(x.shape)
    perm = tuple(axis_of(axis, rank) for axis in perm)
    if perm == tuple(range(rank)):
        return x
    value = uniform(x)
    if value is not None:
        return filled([sizes(x)[axis] for axis in perm], value, dtype_of(x))
    return b.transpose(x=x, perm=perm)


def swapped(b: Builder, x: Value, first: int, second: int) -> Value:
    perm = list(range(len(x.shape)))
    if perm:
        perm[first], perm[second] = perm[second], perm[first]
    return permuted(b, x, perm)


def broadcast_to(b: Builder, x: Value, shape: Sequence[int]) -> Value:
    """x stretched to `shape` (-1 keeps a size): a product with ones along the stretched axes, exact.

    The ones are stored along those axes only, so the constant stays small.
    """
    lead = len(shape) - len(x.shape)
    target = tuple(sizes(x)[i - lead] if size == -1 else size for i, size in enumerate(shape))
    if target == x.shape:
        return x
    value = uniform(x)
    if value is not None:
        return filled(target, value, dtype_of(x))
    old = (1,) * lead + sizes(x)
    if any(a != b and a != 1 for a, b in zip(old, target)):
        raise NoRule(f"{x.type} does not stretch to {target}.")
    grown = tuple(new if was != new else 1 for was, new in zip(old, target))
    if grown == (1,) * len(target):
        return reshaped(b, x, target)
    return b.mul(x=x, y=constant(np.ones(grown), dtype_of(x)))


def mean(b: Builder, x: Value, axes: Sequence[int]) -> Var:
    """The mean over axes, which stay with size 1. The sum is taken wide; passes give it its form."""
    return b.reduce_mean(x=x, axes=tuple(axes), keep_dims=True)


def summed(b: Builder, x: Value, axes: Sequence[int], keep_dims: bool = True) -> Value:
    """The sum over axes; x itself where there are none."""
    return b.reduce_sum(x=x, axes=tuple(axes), keep_dims=keep_dims) if axes else x
