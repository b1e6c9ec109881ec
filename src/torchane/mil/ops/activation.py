"""Activations: element-wise, some with constants, two (prelu, softplus_parametric) with constants per channel.

Source: coremltools, mil/ops/defs/iOS15/activation.py; from iOS17 the constants may have another float
type than x, which our rules always allow.
"""

import math
from collections.abc import Callable

import numpy as np

from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import require_choice, require_float, require_rank, require_shape
from torchane.mil.types import TensorType

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _activation(name: str, function: Callable[[np.ndarray], np.ndarray]) -> OpKind:
    kind = OpKind(name)

    @kind.infers
    def _(x: TensorType) -> TensorType:
        require_float(name, x=x)
        return x

    @kind.evaluates
    def _(x: np.ndarray) -> np.ndarray:
        return function(x)

    return kind


def _with_alpha(name: str, function: Callable[[np.ndarray, float], np.ndarray]) -> OpKind:
    kind = OpKind(name)

    @kind.infers
    def _(x: TensorType, alpha: float) -> TensorType:
        require_float(name, x=x)
        return x

    @kind.evaluates
    def _(x: np.ndarray, alpha: float) -> np.ndarray:
        return function(x, alpha)

    return kind


def _with_alpha_beta(name: str, function: Callable[[np.ndarray, float, float], np.ndarray]) -> OpKind:
    kind = OpKind(name)

    @kind.infers
    def _(x: TensorType, alpha: float, beta: float) -> TensorType:
        require_float(name, x=x)
        return x

    @kind.evaluates
    def _(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
        return function(x, alpha, beta)

    return kind


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


relu = _activation("relu", lambda x: np.maximum(x, 0))
relu6 = _activation("relu6", lambda x: np.minimum(np.maximum(x, 0), 6))
sigmoid = _activation("sigmoid", lambda x: 1 / (1 + np.exp(-x)))
silu = _activation("silu", lambda x: x / (1 + np.exp(-x)))
softplus = _activation("softplus", _softplus)
softsign = _activation("softsign", lambda x: x / (1 + np.abs(x)))

elu = _with_alpha("elu", lambda x, alpha: np.where(x < 0, alpha * np.expm1(x), x))
leaky_relu = _with_alpha("leaky_relu", lambda x, alpha: np.where(x < 0, alpha * x, x))
thresholded_relu = _with_alpha("thresholded_relu", lambda x, alpha: np.where(x < alpha, 0, x))

clamped_relu = _with_alpha_beta(
    "clamped_relu",
    lambda x, alpha, beta: np.minimum(np.maximum(x, 0), beta) + np.minimum(np.minimum(x, 0) * alpha, beta),
)
linear_activation = _with_alpha_beta("linear_activation", lambda x, alpha, beta: alpha * x + beta)
scaled_tanh = _with_alpha_beta("scaled_tanh", lambda x, alpha, beta: alpha * np.tanh(beta * x))
sigmoid_hard = _with_alpha_beta("sigmoid_hard", lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1))

gelu = OpKind("gelu")


@gelu.infers
def _(x: TensorType, mode: str = "EXACT") -> TensorType:
    require_float("gelu", x=x)
    require_choice("gelu", "mode", mode, ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"))
    return x


@gelu.evaluates
def _(x: np.ndarray, mode: str = "EXACT") -> np.ndarray:
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if mode == "SIGMOID_APPROXIMATION":
        return x / (1 + np.exp(-1.702 * x))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def per_channel(values: np.ndarray, rank: int) -> np.ndarray:
    """(C,) -> (C, 1, ..., 1), to meet axis 1 of a tensor of that rank."""
    return values.reshape(-1, *(1,) * (rank - 2))


prelu = OpKind("prelu", operands=("x", "alpha"))


@prelu.infers
def _(x: TensorType, alpha: TensorType) -> TensorType:
    """Slope alpha (C,) below zero, per channel (axis 1). Apple's runtime wants equal slopes at ranks 3 and 5."""
    require_float("prelu", x=x, alpha=alpha)
    require_rank("prelu", (3, 4, 5), x=x)
    require_shape("prelu", (x.shape[1],), alpha=alpha)
    return x


@prelu.evaluates
def _(x: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.minimum(x, 0) * per_channel(alpha, x.ndim)


softplus_parametric = OpKind("softplus_parametric", operands=("x", "alpha", "beta"))


@softplus_parametric.infers
def _(x: TensorType, alpha: TensorType, beta: TensorType) -> TensorType:
    """alpha * log(1 + exp(beta * x)), alpha and beta (C,) per channel (axis 1)."""
    require_float("softplus_parametric", x=x, alpha=alpha, beta=beta)
    require_rank("softplus_parametric", (3, 4, 5), x=x)
    require_shape("softplus_parametric", (x.shape[1],), alpha=alpha, beta=beta)
    return x


@softplus_parametric.evaluates
def _(x: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    return per_channel(alpha, x.ndim) * _softplus(x * per_channel(beta, x.ndim))
