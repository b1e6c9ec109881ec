"""Frozen matrices that are kept in 4 or 8 bits: the op that gives their numbers, and when it runs.

    packed, scales, biases ── dequantise ──► weight (O, I) ── staged ──► a program      before each program that reads it, then let go
                                                           └──► PyTorch, on the host      the same numbers
A backward makes the numbers again: of such a weight, what is in few bits is all that lasts.
"""

import torch
from torch import Tensor, fx

from torchane.capture.torch_private import CheckpointPolicy

#: Why the host runs it.
REASON = "a frozen weight that is kept in few bits: its numbers are made for each program that reads it"
#: Rows of so many numbers are done together, so that what is derived from them stays in the caches.
_TOGETHER = 1 << 17


@torch.library.custom_op("torchane::dequantise", mutates_args=())
def _dequantise(packed: Tensor, scales: Tensor, biases: Tensor) -> Tensor:
    """(whole number) x scale + bias of its group, rounded once. scales, biases (O, groups) in the weight's dtype; packed uint8 (O, I): a number a byte; (O, I / 2): in
    each group the first half's numbers are the low four bits, the second half's the high ones -> (O, I)."""
    rows, groups = scales.shape
    numbers = packed.view(rows, groups, -1)
    is_halved = is_packed(packed, scales)
    width = numbers.shape[2]
    out = scales.new_empty(rows, groups, 2 * width if is_halved else width)
    step = max(1, _TOGETHER // (groups * out.shape[2]))
    for begin in range(0, rows, step):
        some = slice(begin, begin + step)
        scale, bias = scales[some, :, None], biases[some, :, None]
        parts = (numbers[some] & 15, numbers[some] >> 4) if is_halved else (numbers[some],)
        for i, part in enumerate(parts):  # whole numbers to 255 are exact in bf16; product and sum are float32, and rounded once
            torch.addcmul(bias, part.to(scales.dtype), scale, out=out[some, :, i * width : (i + 1) * width])
    return out.view(rows, -1)


@_dequantise.register_fake
def _(packed: Tensor, scales: Tensor, biases: Tensor) -> Tensor:
    return scales.new_empty(packed.shape[0], packed.shape[1] * (2 if is_packed(packed, scales) else 1))


dequantise = torch.ops.torchane.dequantise.default

#: Numbers that share a scale and a bias.
GROUP = 64


def is_packed(packed: Tensor, scales: Tensor) -> bool:
    """Whether a byte holds two numbers."""
    return packed.shape[1] * 2 == scales.shape[1] * GROUP


def mark_recomputed(joint: fx.Graph) -> None:
    """Nothing that it gives is kept for a backward. joint: a graph that torch is about to part."""
    for node in joint.find_nodes(op="call_function", target=dequantise):
        if node.meta.get("partitioner_tag") != "is_backward":
            node.meta["recompute"], node.meta["ac_graph_id"] = CheckpointPolicy.MUST_RECOMPUTE, 0
