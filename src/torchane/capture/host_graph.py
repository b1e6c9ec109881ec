"""What PyTorch runs between programs, with fewer passes over memory.

    add(x, embedding_dense_backward(grad, tokens, V))   ->   x, with the rows of `tokens` added in place
The gradient of an embedding's table is zero but for the rows that were looked up. A tied table adds it to the head's
gradient, which nothing else reads: two tables as large as the weight are never made. The same bits, save that -0 stays -0.

    index_copy(cache, 2, at, k)     ->     cache, with k written in place, where the cache is an input whose new value this is
AOTAutograd would copy the whole new value onto the input afterwards. Only where nothing is differentiated and nothing else reads the old value: a
second run of the graph then writes the same rows before it reads any.

    view(softplus_backward(..), s)     ->     reshape(softplus_backward(..), s)
Some ops' results do not lie in memory as torch's trace says (softplus_backward's lies as its first argument). Ops that read memory, not values,
would end in an error or read other numbers: before them a result is laid out as traced, and a view is taken by its values.
"""

import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from torchane.capture.graph import Cut
from torchane.capture.looked_up import summed
from torchane.capture.torch_private import WeakIdKeyDictionary
from torchane.plan.step_graph import Place
from torchane.runtime.gradients import gradient_at
from torchane.runtime.rows import Written

aten = torch.ops.aten


#: What says where in memory numbers lie, by the strides of its first argument.
_STRIDED = (aten.as_strided, aten.as_strided_copy, aten.as_strided_scatter)


def read_as_traced(graph: fx.Graph) -> None:
    """Rewrites what PyTorch will run, in place. Nodes keep their names."""
    for node in graph.find_nodes(op="call_function", target=aten.view.default) + graph.find_nodes(op="call_function", target=aten._unsafe_view.default):
        node.target = aten.reshape.default
    for node in graph.nodes:
        if getattr(node.target, "overloadpacket", None) in _STRIDED:
            source = node.args[0]
            strides = source.meta["val"].stride()
            if all(isinstance(stride, int) for stride in strides):
                with graph.inserting_before(node):
                    node.replace_input_with(source, graph.call_function(laid_out, (source, strides)))


def laid_out(tensor: Tensor, strides: Sequence[int]) -> Tensor:
    """The tensor itself where it lies in memory with these strides; else a copy that does."""
    if tensor.numel() < 2 or all(size == 1 or one == other for size, one, other in zip(tensor.shape, tensor.stride(), strides, strict=True)):
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def add_rows_in_place(segment: fx.Graph, cut: Cut, copies: dict[fx.Node, fx.Node]) -> None:
    """Rewrites a host segment. copies: each node of the whole graph that is in the segment, and its copy there."""
    for node in list(copies):
        found = sum_with_rows(node, cut)
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


def write_rows_in_place(copies: Mapping[fx.Node, fx.Node], written: Mapping[fx.Node, fx.Node]) -> None:
    """Rewrites a host segment. written: values that are an input's new one, and the input."""
    for node in list(copies):
        if _overwrites_rows(node, written.get(node)) and copies[node].op == "call_function":
            copies[node].target = _write_rows


def _overwrites_rows(node: fx.Node, old: fx.Node | None) -> bool:
    return node.target is aten.index_copy.default and node.args[0] is old and old.op == "placeholder" and len(old.users) == 1 and not node.kwargs


#: What was written last into a tensor, as long as it lives.
_notes = WeakIdKeyDictionary()


def _write_rows(tensor: Tensor, axis: int, index: Tensor, rows: Tensor) -> Tensor:
    """tensor with rows written at index along axis, in place."""
    if tensor.is_inference():  # which has no version; torch refuses to write it, or has no need to
        return aten.index_copy.default(tensor, axis, index, rows)
    before = tensor._version
    tensor.index_copy_(axis, index, rows)
    _notes[tensor] = Written(weakref.ref(tensor), axis % tensor.dim(), index.reshape(-1).numpy().copy(), before, tensor._version)
    return tensor


def written_in_place(tensor: Tensor) -> Written | None:
    """The rows that a graph has written into this tensor, if nothing was written since."""
    note: Written | None = _notes.get(tensor)
    return note if note is not None and tensor._version == note.after else None


def never_made(cut: Cut) -> frozenset[fx.Node]:
    """The sums and tables that are not made: rows are added to what is there."""
    sums = {node: found for node in cut.graph.nodes if (found := sum_with_rows(node, cut)) is not None}
    return frozenset(sums) | frozenset(rows for _, rows in sums.values())


def sum_with_rows(node: fx.Node, cut: Cut) -> tuple[fx.Node, fx.Node] | None:
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
    """total (V, C), grad (..., C), tokens (...): total with grad added at the tokens' rows, in place, or beside it where it lies in a surface. What one
    token gets is summed first, as embedding_dense_backward does it."""
    rows, places = tokens.unique(return_inverse=True)
    nothing = int(torch.searchsorted(rows, padding)) if padding >= 0 else -1
    sums = summed(grad, places, len(rows), nothing if 0 <= nothing < len(rows) and int(rows[nothing]) == padding else -1)
    in_surface = gradient_at(total.data_ptr())
    if in_surface is None:
        return total.index_add_(0, rows, sums)
    in_surface.add_rows(rows.numpy(), sums.numpy())
    return total
