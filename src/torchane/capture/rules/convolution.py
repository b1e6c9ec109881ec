"""Convolutions over one or two axes, and their three gradients, as products of matrices.

    x [N, C, H, W] -- taps --> T of [N, G, C/G, P]     T = kernel entries ("taps"), P = output positions
    w [O, C/G, kh, kw]     --> T of [1, G, O/G, C/G]   y = sum of w_t @ x_t,  dw_t = dy @ x_t^T

A tap is x, padded and shifted, every stride-th entry: slices and reshapes. Put side by side the taps would make one wide product,
and joining them without concat more work than it. The gradient in x is again a convolution, of dy with
zeros between its entries, taps in reverse; so is a transposed convolution. Where kernel and stride are one
size (patches of a ViT), both directions are a transpose and a product. A convolution over one axis is
one over two, the first of size 1. Source: Dumoulin &
Visin 2016, arXiv 1603.07285, section 4 (transposed arithmetic).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from torchane.capture.rules import common
from torchane.capture.rules.common import of_one_dtype, permuted, reshaped, sizes
from torchane.capture.rules.registry import Value, lowers, values
from torchane.capture.rules.slices import every, padded_all, part, put_back
from torchane.mil.build import Builder

aten = torch.ops.aten

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """How a kernel slides over (H, W)."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int = 1

    @property
    def taps(self) -> list[Pair]:
        return [(i, j) for i in range(self.kernel[0]) for j in range(self.kernel[1])]

    @property
    def reach(self) -> Pair:
        """From the first entry that a kernel touches to the last."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel))  # type: ignore[return-value]

    @property
    def tiles(self) -> bool:
        """The windows lie side by side: no entry is in two of them, none is padding."""
        alone = self.kernel == self.stride and self.padding == (0, 0) and self.dilation == (1, 1)
        return alone and self.groups == 1 and self.kernel != (1, 1)

    def output_size(self, size: Pair) -> Pair:
        triples = zip(size, self.padding, self.reach, self.stride)
        return tuple((n + 2 * p - reach - 1) // s + 1 for n, p, reach, s in triples)  # type: ignore[return-value]


def window_of(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int = 1
) -> Window:
    """From torch's lists, which have one entry where it means both axes, or where there is one axis."""

    def pair(given: Sequence[int], neutral: int) -> Pair:
        given = list(given) if len(given) == len(kernel) else [given[0]] * len(kernel)
        return (neutral, given[0]) if len(kernel) == 1 else (given[0], given[1])

    return Window(pair(kernel, 1), pair(stride, 1), pair(padding, 0), pair(dilation, 1), groups)


def _one_or_two_axes(node: Node) -> str | None:
    weight, grad = values(node, "weight", "input")
    spatial = weight.meta["val"].dim() - 2
    if spatial not in (1, 2) or grad.meta["val"].dim() != spatial + 2:
        return f"it convolves over {spatial} axes, and programs over one or two"
    return of_one_dtype(node)


def _planar(b: Builder, x: Value) -> Value:
    """[N, C, L] as [N, C, 1, L]."""
    shape = sizes(x)
    return reshaped(b, x, (*shape[:2], 1, shape[2])) if len(shape) == 3 else x


@lowers(aten.convolution.default, when=_one_or_two_axes)
def convolution(
    b: Builder, x: Value, weight: Value, bias: Value | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Value:  # fmt: skip
    rank = len(x.shape)
    window = window_of(sizes(weight)[2:], stride, padding, dilation, groups)
    x, weight = _planar(b, x), _planar(b, weight)
    if transposed:
        extra = window_of(sizes(weight)[2:][4 - rank :], output_padding, [0], [1]).stride
        extra = extra if rank == 4 else (0, extra[1])
        quads = zip(sizes(x)[2:], window.stride, window.padding, window.reach, extra)
        y = spread(b, x, weight, window, tuple((n - 1) * s - 2 * p + reach + 1 + e for n, s, p, reach, e in quads))
    else:
        y = convolved(b, x, weight, window, window.output_size(sizes(x)[2:]))  # type: ignore[arg-type]
    if bias is not None:
        y = b.add(x=y, y=reshaped(b, bias, (1, -1, 1, 1)))
    return _flat_again(b, y, rank)


def _flat_again(b: Builder, x: Value, rank: int) -> Value:
    shape = sizes(x)
    return reshaped(b, x, (*shape[:2], shape[3])) if rank == 3 else x


@lowers(aten.convolution_backward.default, when=_one_or_two_axes)
def convolution_backward(
    b: Builder, grad: Value, x: Value, weight: Value, bias_sizes: Sequence[int] | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
    output_mask: Sequence[bool],
) -> tuple[Value | None, ...]:  # fmt: skip
    """(dx, dweight, dbias), None where output_mask says so."""
    rank, weight_shape = len(x.shape), sizes(weight)
    window = window_of(weight_shape[2:], stride, padding, dilation, groups)
    grad, x, weight = _planar(b, grad), _planar(b, x), _planar(b, weight)
    dx = dweight = dbias = None
    if output_mask[0]:
        size = sizes(x)[2:]
        transpose = convolved if transposed else spread
        dx = transpose(b, grad, weight, window, size)  # type: ignore[arg-type]
        dx = _flat_again(b, dx, rank)
    if output_mask[1]:
        inner, outer = (grad, x) if transposed else (x, grad)
        dweight = reshaped(b, _weight_grad(b, inner, outer, window), weight_shape)
    if output_mask[2]:
        dbias = common.summed(b, grad, (0, 2, 3), keep_dims=False)
    return dx, dweight, dbias


def convolved(b: Builder, x: Value, weight: Value, window: Window, size: Pair) -> Value:
    """x [N, C, H, W], weight [O, C/G, kh, kw] -> [N, O, *size]."""
    outputs, inner, groups, batch = sizes(weight)[0], sizes(weight)[1], window.groups, sizes(x)[0]
    if window.tiles:
        matrix = permuted(b, reshaped(b, weight, (outputs, inner, -1)), (0, 2, 1)) if inner > 1 else weight
        matrix = reshaped(b, matrix, (1, 1, outputs, -1))
        y = b.matmul(x=matrix, y=_side_by_side(b, x, window, size), transpose_x=False, transpose_y=False)
        return reshaped(b, y, (batch, outputs, *size))
    taps = tap_values(b, x, window, size, taps=window.taps)
    if _is_depthwise(weight, groups):
        return _depthwise(b, taps, weight)
    rows = [reshaped(b, tap, (batch, groups, inner, math.prod(size))) for tap in taps]
    terms = [
        b.matmul(x=matrix, y=row, transpose_x=False, transpose_y=False) for matrix, row in zip(_matrices(b, weight, groups), rows, strict=True)
    ]
    return reshaped(b, _in_pairs(b, terms), (batch, outputs, *size))


def _matrices(b: Builder, weight: Value, groups: int) -> list[Value]:
    """weight [O, C/G, kh, kw] -> [1, G, O/G, C/G] for each tap."""
    outputs, inner = sizes(weight)[:2]
    taps = math.prod(sizes(weight)[2:])
    flat = permuted(b, reshaped(b, weight, (outputs, inner, taps)), (2, 0, 1)) if taps > 1 else weight
    flat = reshaped(b, flat, (taps, outputs, inner))
    return [reshaped(b, part(b, flat, 0, i, 1), (1, groups, outputs // groups, inner)) for i in range(taps)]


def spread(b: Builder, y: Value, weight: Value, window: Window, size: Pair) -> Value:
    """The transpose of `convolved`: y [N, O, OH, OW], weight [O, C/G, kh, kw] -> [N, C, *size]."""
    outputs, inner, groups, batch = sizes(weight)[0], sizes(weight)[1], window.groups, sizes(y)[0]
    if window.tiles:
        taps = len(window.taps)
        matrix = reshaped(b, permuted(b, reshaped(b, weight, (outputs, inner, taps)), (0, 2, 1)), (1, outputs, -1))
        tiles = b.matmul(x=matrix, y=reshaped(b, y, (batch, outputs, -1)), transpose_x=True, transpose_y=False)
        return _from_tiles(b, tiles, inner, window, sizes(y)[2:], size)  # type: ignore[arg-type]
    amounts = {}
    for axis in (0, 1):
        length, step = sizes(y)[2 + axis], window.stride[axis]
        stuffed = (length - 1) * step + 1
        y = put_back(b, y, 2 + axis, stuffed, range(0, stuffed, step))
        before = window.reach[axis] - window.padding[axis]
        amounts[2 + axis] = (before, size[axis] + window.reach[axis] - stuffed - before)
    backward = Window(window.kernel, (1, 1), (0, 0), window.dilation, groups)
    y = padded_all(b, y, amounts)
    taken = tap_values(b, y, backward, size, taps=window.taps[::-1])
    if _is_depthwise(weight, groups):
        return _depthwise(b, taken, weight)
    rows = [reshaped(b, tap, (batch, groups, outputs // groups, math.prod(size))) for tap in taken]
    terms = [
        b.matmul(x=matrix, y=row, transpose_x=True, transpose_y=False) for matrix, row in zip(_matrices(b, weight, groups), rows, strict=True)
    ]
    return reshaped(b, _in_pairs(b, terms), (batch, groups * inner, *size))


def _is_depthwise(weight: Value, groups: int) -> bool:
    """A filter of its own for every channel."""
    return groups > 1 and sizes(weight)[:2] == (groups, 1)


def _depthwise(b: Builder, taps: Sequence[Value], weight: Value) -> Value:
    """taps of [N, C, OH, OW], weight [C, 1, kh, kw] -> their weighted sum.

    A product would have one row a channel, and the taps of all channels side by side are more columns than a chip has
    channels. Each term is rounded to fp16 before it is added.
    """
    channels = sizes(weight)[0]
    factors = reshaped(b, weight, (channels, len(taps)))
    terms = [b.mul(x=tap, y=reshaped(b, part(b, factors, 1, i, 1), (1, channels, 1, 1))) for i, tap in enumerate(taps)]
    return _in_pairs(b, terms)


def _in_pairs(b: Builder, terms: list[Value]) -> Value:
    """The sum; each term is rounded log2(their number) times, not once for every term after it."""
    while len(terms) > 1:
        terms = [b.add(x=x, y=y) for x, y in zip(terms[::2], terms[1::2])] + (terms[-1:] if len(terms) % 2 else [])
    return terms[0]


def _weight_grad(b: Builder, x: Value, grad: Value, window: Window) -> Value:
    """x [N, C, H, W], grad [N, O, OH, OW] -> [O, C/G, T]: a product per tap and image, then their sum over images."""
    batch, outputs, *size = sizes(grad)
    groups, inner = window.groups, sizes(x)[1] // window.groups
    grad = reshaped(b, grad, (batch, groups, outputs // groups, math.prod(size)))
    if inner == 1 and groups > 1:
        return _depthwise_weight_grad(b, x, grad, window, tuple(size))  # type: ignore[arg-type]
    taps = len(window.taps)
    if window.tiles:
        taken = _side_by_side(b, x, window, tuple(size))  # type: ignore[arg-type]
        total = _over_images(b, b.matmul(x=grad, y=taken, transpose_x=False, transpose_y=True))
        total = reshaped(b, total, (outputs, taps, inner))
        return permuted(b, total, (0, 2, 1)) if inner > 1 else reshaped(b, total, (outputs, 1, taps))
    rows = (batch, groups, inner, math.prod(size))
    each = [
        reshaped(b, _over_images(b, b.matmul(x=grad, y=reshaped(b, tap, rows), transpose_x=False, transpose_y=True)), (1, outputs, 1, inner))
        for tap in tap_values(b, x, window, tuple(size), taps=window.taps)  # type: ignore[arg-type]
    ]
    total = b.concat(values=tuple(each), axis=2) if taps > 1 else each[0]  # not last: rows of O * C are more than a chip takes
    return permuted(b, reshaped(b, total, (outputs, taps, inner)), (0, 2, 1))


def _over_images(b: Builder, each: Value) -> Value:
    """The sum over the first axis, which stays."""
    return common.summed(b, each, (0,)) if sizes(each)[0] > 1 else each


def _depthwise_weight_grad(b: Builder, x: Value, grad: Value, window: Window, size: Pair) -> Value:
    """x [N, G, H, W], grad [N, G, O/G, P] -> [O, 1, T]: a product for each tap, so that channels and positions keep the
    axes that they lie in. Side by side, the taps of an image's channels are more columns than a chip has channels."""
    batch, groups, outputs, positions = sizes(grad)
    rows = (batch, groups, 1, positions)
    each = [
        b.matmul(x=grad, y=reshaped(b, tap, rows), transpose_x=False, transpose_y=True)
        for tap in tap_values(b, x, window, size, taps=window.taps)
    ]
    joined = b.concat(values=tuple(each), axis=3) if len(each) > 1 else each[0]
    total = common.summed(b, joined, (0,)) if batch > 1 else joined
    return reshaped(b, total, (groups * outputs, 1, len(each)))


def _side_by_side(b: Builder, x: Value, window: Window, size: Pair) -> Value:
    """[N, C, H, W] -> [N, 1, T * C, OH * OW], taps outside channels, where windows lie side by side: a transpose."""
    return reshaped(b, _tiles(b, x, window, size), (sizes(x)[0], 1, -1, math.prod(size)))


def tap_values(
    b: Builder, x: Value, window: Window, size: Pair, *, taps: Sequence[Pair], fill: float = 0.0
) -> list[Value]:
    """For each tap the entries that it meets, [N, C, OH, OW]; padding reads as `fill`."""
    amounts = {}
    for axis in (0, 1):
        step, before = window.stride[axis], window.padding[axis]
        wanted = (size[axis] - 1) * step + window.reach[axis] + 1
        wanted += -wanted % step
        amounts[2 + axis] = (before, wanted - sizes(x)[2 + axis] - before)
    x = padded_all(b, x, amounts, fill)
    rows = {i: every(b, x, 2, i * window.dilation[0], window.stride[0], size[0]) for i in {i for i, _ in taps}}
    return [every(b, rows[i], 3, j * window.dilation[1], window.stride[1], size[1]) for i, j in taps]


def _tiles(b: Builder, x: Value, window: Window, size: Pair) -> Value:
    """[N, C, OH * kh, OW * kw] -> [N, kh * kw, C, OH * OW] in any grouping of the last axes."""
    (high, wide), (kh, kw) = size, window.kernel
    batch, channels, *_ = sizes(x)
    x = part(b, part(b, x, 2, 0, high * kh), 3, 0, wide * kw)
    x = permuted(b, reshaped(b, x, (batch * channels * high, kh, wide, kw)), (0, 1, 3, 2))
    return permuted(b, reshaped(b, x, (batch, channels * high, kh * kw, wide)), (0, 2, 1, 3))


def _from_tiles(b: Builder, tiles: Value, channels: int, window: Window, tiled: Pair, size: Pair) -> Value:
    """The inverse of `_tiles`: [N, kh * kw * C, OH * OW] -> [N, C, *size], zeros where no tile reaches."""
    (high, wide), (kh, kw) = tiled, window.kernel
    batch = sizes(tiles)[0]
    x = permuted(b, reshaped(b, tiles, (batch, kh * kw, channels * high, wide)), (0, 2, 1, 3))
    x = permuted(b, reshaped(b, x, (batch * channels * high, kh, kw, wide)), (0, 1, 3, 2))
    x = reshaped(b, x, (batch, channels, high * kh, wide * kw))
    return padded_all(b, x, {2: (0, size[0] - high * kh), 3: (0, size[1] - wide * kw)})
