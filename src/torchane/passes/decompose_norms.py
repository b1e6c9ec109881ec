"""Write norms as sums of squares and a power.

    y = layer_norm(x, axes, gamma, beta, epsilon)
        ->  d = x - mean(x);  y = d * pow(mean(d * d) + epsilon, -0.5) * gamma + beta
    y = batch_norm(x, mean, variance, gamma, beta, epsilon)   ->   x * scale + shift, both constants
    y = instance_norm(x, gamma, beta, epsilon)                ->   layer_norm's form over the axes behind the channels
    y = l2_norm(x, epsilon)                                   ->   x * pow(sum(x * x) + epsilon, -0.5), last three axes
The centred form: the variance is never a difference of two large numbers. In exact numbers nothing moves; in
fp16 each step rounds once where the native op rounds at the end.
"""

import numpy as np

from torchane.chips import Chip
from torchane.mil.build import Builder
from torchane.mil.ir import Literal, Op, Program, Var
from torchane.mil.types import TensorType
from torchane.passes.rewrite import Rule, literal_like, rewrite, shape_of, unless_taken


def decompose_norms(program: Program, chip: Chip | None = None) -> Program:
    return rewrite(program, unless_taken(RULES, chip))


def _layer_norm(b: Builder, op: Op) -> Var:
    x = op.args["x"]
    rank = len(shape_of(x))
    axes = op.value("axes", tuple(range(rank)))
    y = _standardized(b, x, axes, op.value("epsilon", 1e-5))
    shape = tuple(size if axis in {a % rank for a in axes} else 1 for axis, size in enumerate(shape_of(x)))
    return _affine(b, y, op, shape)


def _instance_norm(b: Builder, op: Op) -> Var:
    """x (N, C, ...): gamma and beta hold one entry per channel."""
    x = op.args["x"]
    rank = len(shape_of(x))
    y = _standardized(b, x, tuple(range(2, rank)), op.value("epsilon", 1e-5))
    return _affine(b, y, op, (1, -1, *[1] * (rank - 2)))


def _batch_norm(b: Builder, op: Op) -> Var:
    x = op.args["x"]
    rank = len(shape_of(x))
    stats = {name: op.args[name] for name in ("mean", "variance", "gamma", "beta") if name in op.args}
    assert all(isinstance(arg, Literal) for arg in stats.values()), f"{op.name}: batch_norm's statistics are constants"
    mean, variance, gamma, beta = (
        stats[name].value.astype(np.float64) if name in stats else default
        for name, default in (("mean", 0.0), ("variance", 1.0), ("gamma", 1.0), ("beta", 0.0))
    )
    scale = gamma / np.sqrt(variance + op.value("epsilon", 1e-5))
    shape = (1, -1, *[1] * (rank - 2))
    scaled = b.mul(x=x, y=literal_like(scale.reshape(shape), op.output.type))
    return b.add(x=scaled, y=literal_like((beta - mean * scale).reshape(shape), op.output.type))


def _l2_norm(b: Builder, op: Op) -> Var:
    x = op.args["x"]
    squares = b.reduce_sum(x=b.mul(x=x, y=x), axes=(-3, -2, -1), keep_dims=True)
    return b.mul(x=x, y=_inverse_root(b, squares, op.value("epsilon", 1e-6)))


def _standardized(b: Builder, x: Var | Literal, axes: tuple[int, ...], epsilon: float) -> Var:
    centred = b.sub(x=x, y=b.reduce_mean(x=x, axes=axes, keep_dims=True))
    variance = b.reduce_mean(x=b.mul(x=centred, y=centred), axes=axes, keep_dims=True)
    return b.mul(x=centred, y=_inverse_root(b, variance, epsilon))


def _inverse_root(b: Builder, x: Var, epsilon: float) -> Var:
    return b.pow(x=b.add(x=x, y=float(epsilon)), y=-0.5)


def _affine(b: Builder, y: Var, op: Op, shape: tuple[int, ...]) -> Var:
    """y * gamma + beta, each reshaped to meet y; either may be absent."""
    for name, apply in (("gamma", b.mul), ("beta", b.add)):
        arg = op.args.get(name)
        if arg is not None:
            y = apply(x=y, y=_reshaped(b, arg, shape))
    return y


def _reshaped(b: Builder, arg: Var | Literal, shape: tuple[int, ...]) -> Var | Literal:
    if isinstance(arg, Literal):
        value = arg.value.reshape(shape)
        return Literal(TensorType(arg.type.dtype, value.shape), value)
    return b.reshape(x=arg, shape=shape)


RULES: dict[str, Rule] = {
    "layer_norm": _layer_norm,
    "instance_norm": _instance_norm,
    "batch_norm": _batch_norm,
    "l2_norm": _l2_norm,
}
