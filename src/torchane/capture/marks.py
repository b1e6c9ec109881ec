"""What an author asked to have in float32: `x.float()`, `x.to(torch.float32)`, `softmax(x, dtype=torch.float32)`.

    h = x.float();  d = h - h.mean(-1, keepdim=True);  y = (d * d).to(x.dtype);  z = linear(y)
        starts      marked                             ends                      a product rounds its operands
In a float32 model these calls change nothing and leave no op in the ATen graph. So the nodes of Dynamo's graph are marked
before AOTAutograd traces it, which keeps `custom` of a node's record. `.to(dtype)` of a value that is marked takes it back
to what it was before; of any other, with float32, it starts.
"""

import operator
from collections.abc import Iterable

import torch
from torch import fx

#: In the `custom` record of a loss: its scores are read elsewhere, too, so they are whole (vocabulary.py).
SCORES_LEAVE = "torchane_scores_leave"
#: In the `custom` record of a node.
MARK = "torchane_float32"

#: Calls that multiply matrices, or look rows up: no mark passes them.
_ENDS = frozenset({
    "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "mv", "dot", "einsum", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "scaled_dot_product_attention", "embedding", "bilinear",
})  # fmt: skip
_CASTS = frozenset({"to", "type", "type_as", "half", "bfloat16"})


def mark_float32(gm: fx.GraphModule) -> None:
    """Marks the calls of Dynamo's graph that lie between a cast to float32 and the next cast or product."""
    marked: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        before = [source for source in node.all_input_nodes if source in marked]
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if node.op == "call_method" and name in _CASTS and _dtype(node) is not None:
            is_marked = not before and _dtype(node) == torch.float32
        elif node.op == "call_method" and name == "float":
            is_marked = True
        elif node.kwargs.get("dtype") == torch.float32:
            is_marked = any(_is_activation(source) for source in node.all_input_nodes)
        else:
            is_marked = bool(before) and name not in _ENDS and node.target is not operator.matmul and not _joins(node, marked)
        if is_marked:
            marked.add(node)
            node.meta["custom"] = {**(node.meta.get("custom") or {}), MARK: True}


def is_marked(node: fx.Node) -> bool:
    return bool((node.meta.get("custom") or {}).get(MARK))


def _joins(node: fx.Node, marked: Iterable[fx.Node]) -> bool:
    """A sum with an activation that nobody cast: a residual stream, which is as exact as its other part."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in ("add", "add_", "iadd") and any(_is_activation(source) and source not in marked for source in node.all_input_nodes)


def _is_activation(node: fx.Node) -> bool:
    return node.op.startswith("call_") and isinstance(node.meta.get("example_value"), torch.Tensor)


def _dtype(node: fx.Node) -> torch.dtype | None:
    """What a cast gives; None where it only names a device or a memory format."""
    if node.target == "half":
        return torch.float16
    if node.target == "bfloat16":
        return torch.bfloat16
    given = [*node.args[1:], *node.kwargs.values()]
    for value in given:
        if isinstance(value, torch.dtype):
            return value
        if isinstance(value, fx.Node) and isinstance(value.meta.get("example_value"), torch.Tensor):
            return value.meta["example_value"].dtype
    return None
