"""Which values of a backward leave as a weight's gradient and are nothing else: an optimizer of ours may read them where programs wrote them.

    mm_7 (768, 768) ──► permute ──► permute ──► the gradient of primals_12                             mm_7: primals_12
    mm_1, mm_2 ──► put together ──► plus an embedding's rows ──► the gradient of primals_1             mm_1: primals_1, mm_2: primals_1
"""

from collections.abc import Mapping

import torch
from torch import fx

from torchane.capture.graph import Cut
from torchane.capture.host_graph import sum_with_rows
from torchane.capture.wide import WHOLE
from torchane.plan.step_graph import Place

aten = torch.ops.aten

#: Of VIEWS those that never copy.
_SAME_MEMORY = frozenset({
    aten.view.default, aten._unsafe_view.default, aten.t.default, aten.transpose.int, aten.permute.default, aten.alias.default, aten.detach.default,
})  # fmt: skip


def only_gradients(graph: fx.Graph, cut: Cut, weights: Mapping[int, str]) -> dict[str, str]:
    """Programs' values, by name, and the weight whose gradient, or part of one, each becomes: dense float32 tensors over the same numbers in the same order,
    but for rows that the host adds to them (host_graph.py). weights: by output position."""
    results = list(graph.output_node().args[0])
    found = {}
    for position, weight in weights.items():
        base = _source(results[position], cut) if results.count(results[position]) == 1 else None
        parts = base.args[0] if base is not None and cut.reasons.get(base) == WHOLE else [base]
        if all(isinstance(part, fx.Node) and cut.place.get(part) is Place.PROGRAM and _is_alone(part) for part in parts):
            found |= dict.fromkeys((part.name for part in parts), weight)
    return found


def _source(result: object, cut: Cut) -> fx.Node | None:
    """What a result is a view of, or that and rows of an embedding, where nobody else reads it or what lies between."""
    node = result
    while isinstance(node, fx.Node) and _is_alone(node):
        with_rows = sum_with_rows(node, cut)
        if with_rows is not None and cut.stage[with_rows[1]] == cut.stage[node] and with_rows[0].meta["val"].is_contiguous():  # rows are added in place
            node = with_rows[0]
        elif node.target in _SAME_MEMORY:
            node = node.args[0]
        else:
            return node if node.meta["val"].is_contiguous() and isinstance(result, fx.Node) and result.meta["val"].is_contiguous() else None
    return None


def _is_alone(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return len(node.users) == 1 and isinstance(value, torch.Tensor) and value.dtype == torch.float32
