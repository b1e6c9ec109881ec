"""Normalisations: softmax and the norms. Moments are taken in the arithmetic given, without rounding between.

Source: coremltools, mil/ops/defs/iOS15/normalization.py and activation.py (softmax); from iOS17 the
constants may have another float type than x, which our rules always allow.
"""

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import positive_axes, positive_axis, require_float, require_rank, require_shape
from torchane.mil.types import TensorType

softmax = OpKind("softmax")


@softmax.infers
def _(x: TensorType, axis: int = -1) -> TensorType:
    require_float("softmax", x=x)
    positive_axis("softmax", axis, x.rank)
    return x


@softmax.evaluates
def _(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _per_channel(values: np.ndarray | None, rank: int, absent: float) -> np.ndarray | float:
    """(C,) -> (C, 1, ..., 1), to meet axis 1 of a tensor of that rank."""
    return absent if values is None else values.reshape(-1, *(1,) * (rank - 2))


layer_norm = OpKind("layer_norm", operands=("x", "gamma", "beta"))


@layer_norm.infers
def _(
    x: TensorType,
    axes: tuple[int, ...] | None = None,
    gamma: TensorType | None = None,
    beta: TensorType | None = None,
    epsilon: float = 1e-5,
) -> TensorType:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta over `axes`; gamma and beta have those axes' shape."""
    require_float("layer_norm", x=x, gamma=gamma, beta=beta)
    normalized = tuple(x.shape[axis] for axis in positive_axes("layer_norm", axes, x.rank))
    require_shape("layer_norm", normalized, gamma=gamma, beta=beta)
    return x


@layer_norm.evaluates
def _(
    x: np.ndarray,
    axes: tuple[int, ...] | None = None,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    epsilon: float = 1e-5,
) -> np.ndarray:
    over = positive_axes("layer_norm", axes, x.ndim)
    shape = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    centred = x - x.mean(axis=over, keepdims=True)
    normal = centred / np.sqrt(np.square(centred).mean(axis=over, keepdims=True) + epsilon)
    return normal * (1 if gamma is None else gamma.reshape(shape)) + (0 if beta is None else beta.reshape(shape))


batch_norm = OpKind("batch_norm", operands=("x", "mean", "variance", "gamma", "beta"))


@batch_norm.infers
def _(
    x: TensorType,
    mean: TensorType,
    variance: TensorType,
    gamma: TensorType | None = None,
    beta: TensorType | None = None,
    epsilon: float = 1e-5,
) -> TensorType:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, all four (C,) per channel (axis 1)."""
    require_float("batch_norm", x=x, mean=mean, variance=variance, gamma=gamma, beta=beta)
    require_rank("batch_norm", (3, 4, 5), x=x)
    require_shape("batch_norm", x.shape[1:2], mean=mean, variance=variance, gamma=gamma, beta=beta)
    return x


@batch_norm.evaluates
def _(
    x: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    epsilon: float = 1e-5,
) -> np.ndarray:
    normal = (x - _per_channel(mean, x.ndim, 0)) / np.sqrt(_per_channel(variance, x.ndim, 1) + epsilon)
    return normal * _per_channel(gamma, x.ndim, 1) + _per_channel(beta, x.ndim, 0)


instance_norm = OpKind("instance_norm", operands=("x", "gamma", "beta"))


@instance_norm.infers
def _(
    x: TensorType, gamma: TensorType | None = None, beta: TensorType | None = None, epsilon: float = 1e-5
) -> TensorType:
    """Each channel of each example to mean 0 and variance 1 over the spatial axes; gamma and beta (C,)."""
    require_float("instance_norm", x=x, gamma=gamma, beta=beta)
    require_rank("instance_norm", (3, 4), x=x)
    require_shape("instance_norm", x.shape[1:2], gamma=gamma, beta=beta)
    return x


@instance_norm.evaluates
def _(
    x: np.ndarray, gamma: np.ndarray | None = None, beta: np.ndarray | None = None, epsilon: float = 1e-5
) -> np.ndarray:
    over = tuple(range(2, x.ndim))
    centred = x - x.mean(axis=over, keepdims=True)
    normal = centred / np.sqrt(np.square(centred).mean(axis=over, keepdims=True) + epsilon)
    return normal * _per_channel(gamma, x.ndim, 1) + _per_channel(beta, x.ndim, 0)


l2_norm = OpKind("l2_norm")


@l2_norm.infers
def _(x: TensorType, epsilon: float = 1e-6) -> TensorType:
    """x / sqrt(sum of squares over the last three axes + epsilon)."""
    require_float("l2_norm", x=x)
    if x.rank < 3:
        raise CompileError(f"l2_norm: x is {x}; it normalises the last three axes and needs them.")
    return x


@l2_norm.evaluates
def _(x: np.ndarray, epsilon: float = 1e-6) -> np.ndarray:
    return x / np.sqrt(np.square(x).sum(axis=(-3, -2, -1), keepdims=True) + epsilon)


local_response_norm = OpKind("local_response_norm")


@local_response_norm.infers
def _(x: TensorType, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> TensorType:
    """x / (k + alpha / size * sum of squares over `size` neighbouring channels) ** beta."""
    require_float("local_response_norm", x=x)
    require_rank("local_response_norm", (3, 4, 5), x=x)
    if size < 1:
        raise CompileError(f"local_response_norm: size {size} for x {x}; it counts channels and is at least 1.")
    return x


@local_response_norm.evaluates
def _(x: np.ndarray, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> np.ndarray:
    """The window of channel c starts at c - size // 2; channels outside count as zeros, as in PyTorch."""
    before = size // 2
    padded = np.pad(np.square(x), [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)])
    total = sum(padded[:, shift : shift + x.shape[1]] for shift in range(size))
    return x / (k + alpha / size * total) ** beta
