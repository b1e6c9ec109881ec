"""Rows of a table, looked up and added up by kernels of ours.

    embedding(table, tokens)                            ->  looked_up      the same bits
    embedding_dense_backward(grad, tokens, V, padding)  ->  summed         the same bits: rows are added in the order of the tokens
torch runs them in threads that go on spinning for milliseconds, beside those that compute the first programs of a forward and the update.
"""

import torch
from torch import Tensor, fx

from torchane import native
from torchane.capture.borrowed import array_of

aten = torch.ops.aten


def look_up_ourselves(graph: fx.Graph) -> None:
    """Rewrites what PyTorch will run, in place."""
    for node in graph.find_nodes(op="call_function", target=aten.embedding.default):
        node.target, node.args, node.kwargs = looked_up, tuple(node.args[:2]), {}
    for node in graph.find_nodes(op="call_function", target=aten.embedding_dense_backward.default):
        if not node.args[4]:  # not scaled by frequency
            node.target, node.args = summed, tuple(node.args[:4])


def looked_up(table: Tensor, index: Tensor) -> Tensor:
    """table (V, C), index (...) integers -> (..., C). Raises IndexError for a row that there is not."""
    if not _are_plain(table) or index.dtype is not torch.int64:
        return aten.embedding.default(table, index)
    found = table.new_empty((*index.shape, table.shape[1]))
    if not native.take_rows(array_of(found.view(index.numel(), table.shape[1])), array_of(table), index.reshape(-1).numpy()):
        raise IndexError("index out of range in self")
    return found


def summed(grad: Tensor, index: Tensor, rows: int, padding: int) -> Tensor:
    """grad (..., C), index (...) integers -> (rows, C): what goes back to each row of a table; to the row `padding` nothing."""
    flat = grad.reshape(index.numel(), grad.shape[-1])
    if not _are_plain(flat) or index.dtype is not torch.int64:
        return aten.embedding_dense_backward.default(grad, index, rows, padding, False)
    sums = flat.new_empty((rows, grad.shape[-1]))
    if not native.sum_rows(array_of(sums), array_of(flat), index.reshape(-1).numpy(), padding):
        raise IndexError("index out of range in self")
    return sums


def _are_plain(rows: Tensor) -> bool:
    return rows.dtype is torch.float32 and rows.dim() == 2 and rows.is_contiguous() and rows.numel() > 0
