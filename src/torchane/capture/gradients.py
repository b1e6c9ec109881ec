"""Which values of a backward leave as a weight's gradient and are nothing else: an optimizer of ours may read them where programs wrote them.

    mm_7 (768, 768) ──► permute ──► permute ──► the gradient of primals_12          mm_7: primals_12
"""

from collections.abc import Mapping

import torch
from torch import fx

from torchane.capture.graph import Cut
from torchane.plan.step_graph import Place

aten = torch.ops.aten

#: Of VIEWS those that never copy.
_SAME_MEMORY = frozenset({
    aten.view.default, aten._unsafe_view.default, aten.t.default, aten.transpose.int, aten.permute.default, aten.alias.default, aten.detach.default,
})  # fmt: skip


def only_gradients(graph: fx.Graph, cut: Cut, weights: Mapping[int, str]) -> dict[str, str]:
    """Programs' values, by name, and the weight whose gradient each becomes: dense float32 tensors over the same numbers in the same order.
    weights: by output position."""
    results = list(graph.output_node().args[0])
    found = {}
    for position, weight in weights.items():
        base = _source(results[position]) if results.count(results[position]) == 1 else None
        if base is not None and cut.place.get(base) is Place.PROGRAM:
            found[base.name] = weight
    return found


def _source(result: object) -> fx.Node | None:
    """What a result is a view of, where nobody else reads it or what lies between."""
    node = result
    while isinstance(node, fx.Node):
        value = node.meta.get("val")
        if len(node.users) != 1 or not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return None
        if node.target not in _SAME_MEMORY:
            return node if value.is_contiguous() and isinstance(result, fx.Node) and result.meta["val"].is_contiguous() else None
        node = node.args[0]
    return None
