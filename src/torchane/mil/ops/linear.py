"""Products of matrices: matmul, linear (a constant weight, stored as (out, in)) and einsum.

Source: coremltools, mil/ops/defs/iOS15/linear.py and iOS17/linear.py, where a constant operand may have
another element type than the other one, which then gives the type of the result.
"""

import numpy as np

from torchane.errors import CompileError
from torchane.mil.ir import Literal
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import broadcast, fits, require_numbers, require_rank, require_shape, same_dtype
from torchane.mil.types import TensorType

matmul = OpKind("matmul", operands=("x", "y"), dynamic=("x", "y"))


@matmul.infers
def _(
    x: TensorType | Literal, y: TensorType | Literal, transpose_x: bool = False, transpose_y: bool = False
) -> TensorType:
    """(..., M, K) @ (..., K, N) -> (..., M, N); leading axes broadcast. A vector x (K,) gives (..., N)."""
    left, right = (value.type if isinstance(value, Literal) else value for value in (x, y))
    require_numbers("matmul", x=left, y=right)
    if isinstance(x, Literal) == isinstance(y, Literal):
        same_dtype("matmul", x=left, y=right)
    if left.rank < 1 + transpose_x or right.rank < 2:
        raise CompileError(
            f"matmul: x is {left} and y is {right}; y needs two axes, and x one, or two to be transposed "
            f"(transpose_x {transpose_x})."
        )
    rows, k = (1, *left.shape)[-2:] if not transpose_x else left.shape[:-3:-1]
    k_of_y, columns = right.shape[-2:] if not transpose_y else right.shape[:-3:-1]
    if k != k_of_y and None not in (k, k_of_y):
        raise CompileError(
            f"matmul: the inner sizes are {k} and {k_of_y}, for x {left} and y {right} "
            f"(transpose_x {transpose_x}, transpose_y {transpose_y}). x's last axis meets y's second to last."
        )
    dtype = right.dtype if isinstance(x, Literal) else left.dtype
    batch = broadcast("matmul", TensorType(dtype, left.shape[:-2]), TensorType(dtype, right.shape[:-2]))
    return TensorType(dtype, (*batch, *((rows,) if left.rank > 1 else ()), columns))


@matmul.evaluates
def _(x: np.ndarray, y: np.ndarray, transpose_x: bool = False, transpose_y: bool = False) -> np.ndarray:
    return np.matmul(x.swapaxes(-1, -2) if transpose_x else x, y.swapaxes(-1, -2) if transpose_y else y)


@matmul.costs
def _(x: TensorType | Literal, y: TensorType | Literal, transpose_x: bool = False, transpose_y: bool = False) -> int:
    result = matmul.infer({"x": x, "y": y, "transpose_x": transpose_x, "transpose_y": transpose_y})[0]
    return result.size * (x.shape[-2] if transpose_x else x.shape[-1])


linear = OpKind("linear", operands=("x", "weight", "bias"))


@linear.infers
def _(x: TensorType, weight: TensorType, bias: TensorType | None = None) -> TensorType:
    """x (..., I) times weight (O, I) transposed, plus bias (O,) -> (..., O), in the dtype of x."""
    require_numbers("linear", x=x, weight=weight)
    require_rank("linear", (2,), weight=weight)
    if x.rank < 1 or not fits(x.shape[-1:], weight.shape[-1:]):
        raise CompileError(
            f"linear: the inner sizes differ, for x {x} and weight {weight}. The last axis of each is the input size."
        )
    require_shape("linear", weight.shape[:1], bias=bias)
    return TensorType(x.dtype, (*x.shape[:-1], weight.shape[0]))


@linear.evaluates
def _(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    product = np.matmul(x, weight.T)
    return product if bias is None else product + bias


@linear.costs
def _(x: TensorType, weight: TensorType, bias: TensorType | None = None) -> int:
    return x.size * weight.shape[0]


einsum = OpKind("einsum", operands=("values",))


def _terms(equation: str) -> tuple[list[str], str]:
    """The axis letters of each operand and of the result. Raises CompileError for another notation."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or not all(term.isalpha() for term in terms) or not set(result) <= set(left):
        raise CompileError(f"einsum: the equation {equation!r} is not of the form 'nchw,nwhu->nchu'.")
    return terms, result


def _sizes(values: tuple[TensorType, ...], equation: str) -> dict[str, int | None]:
    terms, _ = _terms(equation)
    if len(terms) != len(values) or any(len(term) != value.rank for term, value in zip(terms, values)):
        raise CompileError(f"einsum: {equation!r} does not fit the operands {' and '.join(map(str, values))}.")
    sizes: dict[str, int | None] = {}
    for term, value in zip(terms, values):
        for letter, size in zip(term, value.shape):
            seen = sizes.get(letter, 1)
            if not fits((seen,), (size,)) and 1 not in (seen, size):
                raise CompileError(f"einsum: {equation!r} gives {letter} the sizes {seen} and {size}.")
            sizes[letter] = seen if size in (1, None) and seen != 1 else size
    return sizes


@einsum.infers
def _(values: tuple[TensorType, ...], equation: str) -> TensorType:
    """Axes of size 1 stretch. Apple's runtime takes `nchw,nwhu->nchu` and `chw,whr->chr`, whatever the letters."""
    sizes = _sizes(values, equation)
    same_dtype("einsum", **{f"values[{index}]": value for index, value in enumerate(values)})
    return TensorType(values[0].dtype, tuple(sizes[letter] for letter in _terms(equation)[1]))


@einsum.evaluates
def _(values: tuple[np.ndarray, ...], equation: str) -> np.ndarray:
    terms, result = _terms(equation)
    sizes: dict[str, int] = {}
    for term, value in zip(terms, values):
        for letter, size in zip(term, value.shape):
            sizes[letter] = max(size, sizes.get(letter, 1))
    stretched = [np.broadcast_to(value, [sizes[letter] for letter in term]) for term, value in zip(terms, values)]
    return np.einsum(f"{','.join(terms)}->{result}", *stretched, optimize=True)


@einsum.costs
def _(values: tuple[TensorType, ...], equation: str) -> int:
    sizes = tuple(_sizes(values, equation).values())
    return TensorType(values[0].dtype, sizes).size * (len(values) - 1)
