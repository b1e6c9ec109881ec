"""Random numbers. A seed, 0 or more, gives the same numbers every time here, not those of Apple's generator,
which nobody has published; without one, or with -1, they differ from run to run.

Source: coremltools, mil/ops/defs/iOS15/random.py.
"""

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import known_length, replaced, require_choice, require_float, require_shape
from torchane.mil.types import FP32, TensorType

_SCALAR = TensorType(FP32)
_ZERO, _HALF, _ONE = np.zeros(()), np.array(0.5), np.ones(())


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed if seed >= 0 else None)


def _shaped(kind: str, shape: tuple[int, ...] | TensorType, **parameters: TensorType) -> TensorType:
    """A tensor of that shape in the type that the scalar parameters share."""
    require_float(kind, **parameters)
    require_shape(kind, (), **parameters)
    dtypes = {type_.dtype for type_ in parameters.values()}
    if len(dtypes) > 1:
        raise CompileError(f"{kind}: its parameters are of {dtypes}; they must have one element type.")
    if isinstance(shape, TensorType):
        return TensorType(dtypes.pop(), (None,) * known_length(kind, "shape", shape))
    if min(shape, default=1) < 1:
        raise CompileError(f"{kind}: shape {shape}; each size is 1 or more.")
    return TensorType(dtypes.pop(), shape)


random_uniform = OpKind("random_uniform", operands=("low", "high"), dynamic=("shape",))


@random_uniform.infers
def _(
    shape: tuple[int, ...] | TensorType, low: TensorType = _SCALAR, high: TensorType = _SCALAR, seed: int = -1
) -> TensorType:
    """Evenly from [low, high), 0 and 1 if left out."""
    return _shaped("random_uniform", shape, low=low, high=high)


@random_uniform.evaluates
def _(shape: tuple[int, ...], low: np.ndarray = _ZERO, high: np.ndarray = _ONE, seed: int = -1) -> np.ndarray:
    return low + (high - low) * _generator(seed).random(shape)


random_normal = OpKind("random_normal", operands=("mean", "stddev"), dynamic=("shape",))


@random_normal.infers
def _(
    shape: tuple[int, ...] | TensorType, mean: TensorType = _SCALAR, stddev: TensorType = _SCALAR, seed: int = -1
) -> TensorType:
    """From the normal distribution with that mean (0) and standard deviation (1)."""
    return _shaped("random_normal", shape, mean=mean, stddev=stddev)


@random_normal.evaluates
def _(shape: tuple[int, ...], mean: np.ndarray = _ZERO, stddev: np.ndarray = _ONE, seed: int = -1) -> np.ndarray:
    return mean + stddev * _generator(seed).standard_normal(shape)


random_bernoulli = OpKind("random_bernoulli", operands=("prob",), dynamic=("shape",))


@random_bernoulli.infers
def _(shape: tuple[int, ...] | TensorType, prob: TensorType = _SCALAR, seed: int = -1) -> TensorType:
    """1 with probability prob (0.5), else 0."""
    return _shaped("random_bernoulli", shape, prob=prob)


@random_bernoulli.evaluates
def _(shape: tuple[int, ...], prob: np.ndarray = _HALF, seed: int = -1) -> np.ndarray:
    return (_generator(seed).random(shape) < prob).astype(np.float64)


random_categorical = OpKind("random_categorical")


@random_categorical.infers
def _(x: TensorType, mode: str = "logits", size: int = 1, seed: int = -1) -> TensorType:
    """`size` indices for each row (last axis) of x, drawn with replacement by exp(x), or by x if mode is probs."""
    require_float("random_categorical", x=x)
    require_choice("random_categorical", "mode", mode, ("logits", "probs"))
    if x.rank < 1 or size < 1:
        raise CompileError(f"random_categorical: x is {x} and size {size}; it draws 1 or more from the last axis.")
    return TensorType(x.dtype, replaced(x.shape, -1, size))


@random_categorical.evaluates
def _(x: np.ndarray, mode: str = "logits", size: int = 1, seed: int = -1) -> np.ndarray:
    weights = x if mode == "probs" else np.exp(x - x.max(axis=-1, keepdims=True))
    reached = np.cumsum(weights, axis=-1)
    draws = _generator(seed).random((*x.shape[:-1], size)) * reached[..., -1:]
    return (draws[..., None] >= reached[..., None, :]).sum(axis=-1).astype(np.float64)
