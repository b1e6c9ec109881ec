"""Order and position: sorting, the k largest, running sums, where entries are not zero, bands of matrices.

Source: coremltools, mil/ops/defs/iOS15/tensor_operation.py, iOS16 and iOS17 (topk's further arguments).
Equal entries keep the order in which they stand.
"""

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import positive_axis, replaced, require_choice, require_numbers, require_rank
from torchane.mil.types import DTYPES, INT32, TensorType

argsort = OpKind("argsort")


def _order(x: np.ndarray, axis: int, ascending: bool) -> np.ndarray:
    """Stable in both directions: a descending sort is an ascending one of the axis turned round, turned back."""
    if ascending:
        return np.argsort(x, axis=axis, kind="stable")
    turned = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return x.shape[axis] - 1 - np.flip(turned, axis)


@argsort.infers
def _(x: TensorType, axis: int = -1, ascending: bool = False) -> TensorType:
    """The indices that sort x along the axis; largest first unless ascending."""
    require_numbers("argsort", x=x)
    positive_axis("argsort", axis, x.rank)
    return TensorType(INT32, x.shape)


@argsort.evaluates
def _(x: np.ndarray, axis: int = -1, ascending: bool = False) -> np.ndarray:
    return _order(x, axis, ascending)


topk = OpKind("topk")


@topk.infers
def _(
    x: TensorType,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[TensorType, ...]:
    """The k largest (smallest if ascending) entries along the axis and, unless told otherwise, their indices.
    A `sort` of False leaves their order to the device; ours sorts."""
    require_numbers("topk", x=x)
    require_choice("topk", "output_indices_dtype", output_indices_dtype, ("int32", "uint16"))
    axis = positive_axis("topk", axis, x.rank)
    whole = x.shape[axis]
    if k < 1 or (whole is not None and k > whole):
        raise CompileError(f"topk: k is {k} and axis {axis} of x {x} has {whole} entries.")
    shape = replaced(x.shape, axis, k)
    values = TensorType(x.dtype, shape)
    return (values, TensorType(DTYPES[output_indices_dtype], shape)) if return_indices else (values,)


@topk.evaluates
def _(
    x: np.ndarray,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[np.ndarray, ...]:
    indices = np.take(_order(x, axis, ascending), np.arange(k), axis=axis)
    values = np.take_along_axis(x, indices, axis)
    return (values, indices) if return_indices else (values,)


cumsum = OpKind("cumsum")


@cumsum.infers
def _(x: TensorType, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> TensorType:
    """Sums of what stands up to each entry; `exclusive` without the entry, `reverse` from the end."""
    require_numbers("cumsum", x=x)
    positive_axis("cumsum", axis, x.rank)
    return x


@cumsum.evaluates
def _(x: np.ndarray, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> np.ndarray:
    turned = np.flip(x, axis) if reverse else x
    total = np.cumsum(turned, axis=axis, dtype=x.dtype)
    if exclusive:
        shifted = np.zeros_like(total)
        shifted.swapaxes(0, axis)[1:] = total.swapaxes(0, axis)[:-1]
        total = shifted
    return np.flip(total, axis) if reverse else total


non_zero = OpKind("non_zero")


@non_zero.infers
def _(x: TensorType) -> TensorType:
    """(number of entries that are not zero, rank): the indices of each, in row-major order."""
    return TensorType(INT32, (None, x.rank))


@non_zero.evaluates
def _(x: np.ndarray) -> np.ndarray:
    return np.argwhere(x)


band_part = OpKind("band_part")


@band_part.infers
def _(x: TensorType, lower: int = -1, upper: int = -1) -> TensorType:
    """Zeros outside a band around the diagonal of the last two axes: `lower` below it and `upper` above are
    kept, all of them if negative."""
    require_rank("band_part", range(2, 6), x=x)
    return x


@band_part.evaluates
def _(x: np.ndarray, lower: int = -1, upper: int = -1) -> np.ndarray:
    below = np.arange(x.shape[-2])[:, None] - np.arange(x.shape[-1])
    kept = ((lower < 0) | (below <= lower)) & ((upper < 0) | (-below <= upper))
    return np.where(kept, x, np.zeros((), x.dtype))
