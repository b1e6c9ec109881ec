"""Repairs to a graph as AOTAutograd leaves it, before anything is decided about it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from torchane.capture.torch_private import run_and_save_rng_state, run_with_rng_state

aten = torch.ops.aten


def fill_missing_values(graph: fx.Graph) -> None:
    """AOTAutograd's partitioner writes no `val` on the draws that a checkpointed module repeats."""
    for node in graph.find_nodes(op="call_function", target=run_with_rng_state):
        node.meta.setdefault("val", _drawn(node.args[1], node.args[2:]))
    for node in graph.find_nodes(op="call_function", target=run_and_save_rng_state):
        node.meta.setdefault("val", (torch.get_rng_state(), _drawn(node.args[0], node.args[1:])))


def _drawn(op: Any, args: Sequence[Any]) -> Any:
    return op(*fx.node.map_arg(tuple(args), lambda source: source.meta["val"]))


def leave_out_empty_tensors(graph: fx.Graph) -> None:
    """cat((x, empty)) is x, and the gradient that an empty slice gives is zeros. Partial rotary embeddings that rotate
    everything leave such: no program could hold them, and each would be a trip to the host."""

    def is_empty(node: Any) -> bool:
        value = node.meta.get("val") if isinstance(node, fx.Node) else None
        return isinstance(value, torch.Tensor) and any(isinstance(size, int) and size == 0 for size in value.shape)

    for node in list(graph.find_nodes(op="call_function", target=aten.cat.default)):
        parts = [part for part in node.args[0] if not is_empty(part)]
        if parts and len(parts) < len(node.args[0]):
            node.args = (parts, *node.args[1:])
    for node in list(graph.find_nodes(op="call_function", target=aten.slice_backward.default)):
        if is_empty(node.args[0]):
            with graph.inserting_before(node):
                dtype = node.meta["val"].dtype
                zeros = graph.call_function(aten.full.default, (list(node.args[1]), 0.0), {"dtype": dtype})
            zeros.meta.update(node.meta)
            node.replace_all_uses_with(zeros)
            graph.erase_node(node)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or not is_empty(node))
