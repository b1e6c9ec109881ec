"""Convolution and its transpose over 1, 2 or 3 spatial axes.

Source: coremltools, mil/ops/defs/iOS15/conv.py and iOS17/conv.py, where weight and bias may have another
float type than x. Dilations are refused there for a weight known only at run time; a chip says so, not we.
"""

import math

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import require_choice, require_float, require_length, require_rank, require_shape
from torchane.mil.ops.windows import padding, positions, reach, require_windows, windows
from torchane.mil.types import TensorType

conv = OpKind("conv", operands=("x", "weight", "bias"))


@conv.infers
def _(
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None = None,
    strides: tuple[int, ...] | None = None,
    pad_type: str = "valid",
    pad: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    groups: int = 1,
) -> TensorType:
    """x (N, C, *D), weight (O, C / groups, *K), bias (O,) -> (N, O, *D'). `pad` counts if pad_type is custom."""
    require_float("conv", x=x, weight=weight, bias=bias)
    require_rank("conv", (3, 4, 5), x=x)
    require_rank("conv", (x.rank,), weight=weight)
    require_windows("conv", x.rank - 2, strides, pad, dilations, pad_type)
    require_shape("conv", weight.shape[:1], bias=bias)
    channels, out = x.shape[1], weight.shape[0]
    if groups < 1 or (out is not None and out % groups) or not _meet(channels, weight.shape[1], groups):
        raise CompileError(
            f"conv: x {x} has {channels} channels and weight {weight} takes {weight.shape[1]} in each of "
            f"{groups} groups. weight is (O, C / groups, *K), and groups divides C and O."
        )
    if None in weight.shape[2:]:
        raise CompileError(f"conv: weight is {weight}; the size of its kernel must be known.")
    spans = reach(weight.shape[2:], dilations)
    ones = (1,) * (x.rank - 2)
    return TensorType(
        x.dtype, (x.shape[0], out, *positions("conv", x.shape[2:], spans, strides or ones, pad_type, pad))
    )


def _meet(channels: int | None, per_group: int | None, groups: int) -> bool:
    return None in (channels, per_group) or channels == per_group * groups


@conv.evaluates
def _(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    strides: tuple[int, ...] | None = None,
    pad_type: str = "valid",
    pad: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    groups: int = 1,
) -> np.ndarray:
    """Every window against every filter, one product of matrices for each group."""
    kernel = weight.shape[2:]
    ones = (1,) * len(kernel)
    around = padding(pad_type, x.shape[2:], reach(kernel, dilations), strides or ones, pad)
    view = windows(np.pad(x, [(0, 0), (0, 0), *around]), kernel, strides or ones, dilations or ones)
    summed = [1, *range(2 + len(kernel), view.ndim)]
    parts = [
        np.tensordot(part, filters, (summed, [1, *range(2, weight.ndim)]))
        for part, filters in zip(np.split(view, groups, axis=1), np.split(weight, groups), strict=True)
    ]
    result = np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)
    return result if bias is None else result + bias.reshape(-1, *ones)


@conv.costs
def _(x: TensorType, weight: TensorType, **rest: object) -> int:
    return conv.infer({"x": x, "weight": weight, **rest})[0].size * math.prod(weight.shape[1:])


conv_transpose = OpKind("conv_transpose", operands=("x", "weight", "bias"))


@conv_transpose.infers
def _(
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None = None,
    pad: tuple[int, ...] | None = None,
    output_shape: tuple[int, ...] | None = None,
    pad_type: str = "valid",
    strides: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    groups: int = 1,
) -> TensorType:
    """x (N, C, *D), weight (C, O / groups, *K), bias (O,) -> (N, O, *D'), what conv's gradient in x is.

    D' is output_shape's if given, else (D - 1) * stride + (K - 1) * dilation + 1, less a custom pad; D * stride for same.
    """
    require_float("conv_transpose", x=x, weight=weight, bias=bias)
    require_rank("conv_transpose", (3, 4, 5), x=x)
    require_rank("conv_transpose", (x.rank,), weight=weight)
    require_choice("conv_transpose", "pad_type", pad_type, ("valid", "same", "custom"))
    require_windows("conv_transpose", x.rank - 2, strides, pad, dilations, pad_type)
    if None in weight.shape or groups < 1 or weight.shape[0] % groups or x.shape[1] not in (None, weight.shape[0]):
        raise CompileError(
            f"conv_transpose: x {x} and weight {weight} in {groups} groups do not meet. "
            "weight is (C, O / groups, *K), of known size, and groups divides C."
        )
    out = weight.shape[1] * groups
    require_shape("conv_transpose", (out,), bias=bias)
    if output_shape is not None:
        require_length("conv_transpose", "output_shape", output_shape, x.rank, f"x {x}")
        if output_shape[0] != (x.shape[0] or output_shape[0]) or output_shape[1] != out or min(output_shape) < 1:
            raise CompileError(f"conv_transpose: output_shape {output_shape}; x {x} gives ({x.shape[0]}, {out}, ...).")
        return TensorType(x.dtype, output_shape)
    spans = reach(weight.shape[2:], dilations)
    sizes = []
    for axis, size in enumerate(x.shape[2:]):
        step = strides[axis] if strides else 1
        cut = sum(pad[2 * axis : 2 * axis + 2]) if pad_type == "custom" else 0
        sizes.append(
            None if size is None else size * step if pad_type == "same" else (size - 1) * step + spans[axis] - cut
        )
        if sizes[-1] is not None and sizes[-1] < 1:
            raise CompileError(f"conv_transpose: pad {pad} leaves nothing of spatial axis {axis} of x {x}.")
    return TensorType(x.dtype, (x.shape[0], out, *sizes))


@conv_transpose.evaluates
def _(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    pad: tuple[int, ...] | None = None,
    output_shape: tuple[int, ...] | None = None,
    pad_type: str = "valid",
    strides: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    groups: int = 1,
) -> np.ndarray:
    """Every entry spreads its filter over the result; what lies outside the wanted piece is cut off."""
    kernel, rank = weight.shape[2:], x.ndim - 2
    steps, spread, spans = strides or (1,) * rank, dilations or (1,) * rank, reach(weight.shape[2:], dilations)
    whole = [(size - 1) * step + span for size, step, span in zip(x.shape[2:], steps, spans)]
    full = np.zeros((x.shape[0], weight.shape[1] * groups, *whole), x.dtype)
    for offset in np.ndindex(*kernel):
        at = tuple(
            slice(o * d, o * d + (size - 1) * s + 1, s) for o, d, s, size in zip(offset, spread, steps, x.shape[2:])
        )
        parts = [
            np.moveaxis(np.tensordot(part, filters[(slice(None), slice(None), *offset)], (1, 0)), -1, 1)
            for part, filters in zip(np.split(x, groups, axis=1), np.split(weight, groups), strict=True)
        ]
        full[(slice(None), slice(None), *at)] += np.concatenate(parts, axis=1)
    wanted = _wanted(whole, x.shape[2:], steps, pad_type, pad, output_shape)
    cut = [slice(before, before + size) for before, size in wanted]
    missing = [max(0, before + size - have) for (before, size), have in zip(wanted, whole)]
    result = np.pad(full, [(0, 0), (0, 0), *((0, more) for more in missing)])[(slice(None), slice(None), *cut)]
    return result if bias is None else result + bias.reshape(-1, *(1,) * rank)


def _wanted(whole, sizes, steps, pad_type, pad, output_shape) -> list[tuple[int, int]]:
    """For each spatial axis, where the result starts in the full one and how long it is. `same` cuts evenly,
    with the odd entry behind: the padding of the convolution that it transposes."""
    found = []
    for axis, (have, size, step) in enumerate(zip(whole, sizes, steps)):
        before, after = pad[2 * axis : 2 * axis + 2] if pad_type == "custom" else (0, 0)
        length = have - before - after if pad_type != "same" else size * step
        if output_shape is not None:
            length = output_shape[2 + axis]
        if pad_type == "same":
            before = max(0, have - length) // 2
        found.append((before, length))
    return found


@conv_transpose.costs
def _(x: TensorType, weight: TensorType, **rest: object) -> int:
    return x.size * math.prod(weight.shape[1:])
