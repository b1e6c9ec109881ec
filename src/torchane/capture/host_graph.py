"""What PyTorch runs between programs, with fewer passes over memory.

    add(x, embedding_dense_backward(grad, tokens, V))   ->   x, with the rows of `tokens` added in place
The gradient of an embedding's table is zero but for the rows that were looked up. A tied table adds it to the head's
gradient, which nothing else reads: two tables as large as the weight are never made. The same bits, save that -0 stays -0.
"""

import torch
from torch import Tensor, fx

from torchane.capture.graph import Cut
from torchane.plan.step_graph import Place

aten = torch.ops.aten


def add_rows_in_place(segment: fx.Graph, cut: Cut, copies: dict[fx.Node, fx.Node]) -> None:
    """Rewrites a host segment. copies: each node of the whole graph that is in the segment, and its copy there."""
    for node in list(copies):
        found = _sum_with_rows(node, cut)
        if found is None or any(source not in copies for source in found):
            continue
        total, rows = (copies[source] for source in found)
        if rows.op != "call_function":
            continue  # an earlier segment made it
        grad, tokens, _, padding, _ = rows.args
        with segment.inserting_before(copies[node]):
            added = segment.call_function(_add_rows, (total, grad, tokens, padding))
        copies[node].replace_all_uses_with(added)
        segment.erase_node(copies[node])
        copies[node] = added  # the next sum may read it
        segment.erase_node(rows)


def never_made(cut: Cut) -> frozenset[fx.Node]:
    """The sums and tables that are not made: rows are added to what is there."""
    sums = {node: found for node in cut.graph.nodes if (found := _sum_with_rows(node, cut)) is not None}
    return frozenset(sums) | frozenset(rows for _, rows in sums.values())


def _sum_with_rows(node: fx.Node, cut: Cut) -> tuple[fx.Node, fx.Node] | None:
    """What may be added to in place, and the embedding's gradient that nothing else reads."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    for total, rows in (node.args, node.args[::-1]):
        if not isinstance(total, fx.Node) or not isinstance(rows, fx.Node) or len(rows.users) != 1:
            continue
        is_gradient = rows.target is aten.embedding_dense_backward.default and not rows.args[4]  # not scaled by frequency
        if is_gradient and _is_ours(total, node, cut):
            return total, rows
    return None


def _is_ours(total: fx.Node, add: fx.Node, cut: Cut) -> bool:
    """Made in this graph for this sum alone, and as large, and so is everything that it is a view of."""
    base, wanted = total, add.meta["val"]
    while cut.place[base] is Place.VIEW and len(base.users) == 1:
        base = base.all_input_nodes[0]
    returned = getattr(getattr(base.target, "_schema", None), "returns", ())
    is_made = cut.place[base] is Place.PROGRAM or any(result.alias_info is None for result in returned)
    values = total.meta["val"], base.meta["val"]
    return (
        base.op == "call_function" and is_made and len(base.users) == 1
        and total.meta["val"].shape == wanted.shape
        and all(value.numel() == wanted.numel() and value.dtype == wanted.dtype for value in values)
    )  # fmt: skip


def _add_rows(total: Tensor, grad: Tensor, tokens: Tensor, padding: int) -> Tensor:
    """total (V, C), grad (..., C), tokens (...): total with grad added at the tokens' rows, in place. What one token gets
    is summed first, as embedding_dense_backward does it."""
    rows, places = tokens.unique(return_inverse=True)
    sums = aten.embedding_dense_backward.default(grad, places, len(rows), -1, False)
    sums[rows == padding] = 0
    return total.index_add_(0, rows, sums)
