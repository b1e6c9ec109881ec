"""Attention over many tokens, some rows of queries after the others, so that no surface holds a score for each pair of tokens.

    y = softmax(q k^T + mask) v     ->     y_i = softmax(q_i k^T + mask_i) v  for rows i of the queries,   y = the y_i one below the other
A tile has whole rows of scores, so its softmax is exact and nothing is carried from tile to tile. The scores and probabilities of every tile
are marked, and torch's partition computes them again in the backward, from q, k and v, instead of keeping them. Done to Dynamo's graph, where
attention is one call; for calls with dropout nothing is changed.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from torchane.capture.torch_private import CheckpointPolicy, annotate

aten = torch.ops.aten

#: Scores of one head from which on attention is cut: 2,048 x 2,048 tokens, 8 MiB in fp16.
LEAST_SCORES = 1 << 22
#: Rows of a tile, or more where that would make more than MOST_TILES.
ROWS, MOST_TILES = 256, 16

_MARK = "torchane_scores"


def tile_attention(gm: fx.GraphModule) -> None:
    """Replaces the calls of scaled_dot_product_attention that are worth it, in place."""
    changed = False
    for node in gm.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention):
        if _is_worth_it(node):
            node.target = tiled_attention
            changed = True
    if changed:
        gm.recompile()


def mark_recomputed(joint: fx.Graph) -> bool:
    """Says of every score of a tile that the backward computes it again; whether there is one. joint: a graph that torch is about to part."""
    found = False
    for node in joint.nodes:
        if _MARK in node.meta.get("custom", {}) and node.meta.get("partitioner_tag") != "is_backward":
            node.meta["recompute"], node.meta["ac_graph_id"] = CheckpointPolicy.MUST_RECOMPUTE, 0
            found = True
    return found


def tiled_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """As torch's scaled_dot_product_attention: query (..., H, L, E), key (..., K, S, E), value (..., K, S, F) -> (..., H, L, F)."""
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = (one.repeat_interleave(times, -3) for one in (key, value))
    half = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else scale)  # half of it to either factor, so that both stay in range
    turned = key.transpose(-2, -1) * half
    parts = []
    for start, end in _rows(query.shape[-2]):
        with annotate({_MARK: True}):
            scores = (query[..., start:end, :] * half) @ turned
            if is_causal:
                kept = torch.ones(end - start, key.shape[-2], dtype=torch.bool).tril(start)
                scores = scores + torch.zeros((), dtype=query.dtype).masked_fill(~kept, -torch.inf)
            if attn_mask is not None:
                rows = attn_mask if attn_mask.dim() < 2 or attn_mask.shape[-2] == 1 else attn_mask[..., start:end, :]
                if rows.dtype == torch.bool:
                    rows = torch.zeros_like(rows, dtype=query.dtype).masked_fill(~rows, -torch.inf)
                scores = scores + rows
            masked = is_causal or attn_mask is not None
            p = aten._safe_softmax.default(scores, -1) if masked else torch.softmax(scores, -1)
        parts.append(p @ value)
    return torch.cat(parts, -2)


def _rows(count: int) -> Iterator[tuple[int, int]]:
    size = max(ROWS, -(-count // MOST_TILES))
    size += -size % 32
    return ((start, min(start + size, count)) for start in range(0, count, size))


def _is_worth_it(node: fx.Node) -> bool:
    given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), node.args)) | node.kwargs
    values = [_value(given.get(name)) for name in ("query", "key", "value")]
    if any(value is None for value in values) or given.get("dropout_p", 0.0) != 0:
        return False
    if given.get("attn_mask") is not None and _value(given["attn_mask"]) is None:
        return False
    query, key, _ = values
    sizes = (query.shape[-2], key.shape[-2])  # type: ignore[union-attr]
    return all(isinstance(size, int) for size in sizes) and math.prod(sizes) >= LEAST_SCORES


def _value(arg: Any) -> Tensor | None:
    value = arg.meta.get("example_value") if isinstance(arg, fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None
