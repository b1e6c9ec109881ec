"""Equal calls of a joint graph become one: torch's own pass (`torch._functorch.compile_utils.fx_graph_cse`) with its results.

    a = exp(x); b = exp(x); y = a + b     ->     a = exp(x); y = a + a

torch's asks Inductor which nodes write, and to ask it imports all of Inductor's kernels and templates. Left alone, as there: what draws random numbers,
memory that is not filled, results that share memory with what the graph returns, and pairs with a write between them. Same bits.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import fx

from torchane.capture.graph import draws
from torchane.capture.torch_private import OpOverload, compile_utils, tree_flatten

aten = torch.ops.aten


def join_equals(graph: fx.Graph) -> None:
    """In place; what is left has its name and its place."""
    returned = {storage for node in graph.output_node().all_input_nodes if (storage := _storage(node)) is not None}
    known: dict[Hashable, list[tuple[Any, fx.Node]]] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if _writes(node):
            known = {}
        if not _may_go(node) or _storage(node) in returned:
            continue
        values, form = tree_flatten((node.args, node.kwargs))
        key = node.target, tuple((type(value), repr(value) if isinstance(value, float) else value) for value in values)
        others = known.setdefault(key, [])
        other = next((other for other_form, other in others if other_form == form), None)
        if other is None:
            others.append((form, node))
        else:
            node.replace_all_uses_with(other)
            graph.erase_node(node)


def _may_go(node: fx.Node) -> bool:
    target = compile_utils.get_aten_target(node)
    return not draws(node) and target not in compile_utils.rand_ops and target is not aten.empty


def _writes(node: fx.Node) -> bool:
    """Or changes how later nodes are computed."""
    if isinstance(node.target, OpOverload):
        return bool(node.target._schema.is_mutable)
    return getattr(node.target, "__name__", "").startswith(("_enter_", "_exit_", "_set_")) or node.kwargs.get("out") is not None


def _storage(node: fx.Node) -> int | None:
    """Of a value's memory, as long as the graph lives; None where it has none."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return value.untyped_storage()._cdata
    except NotImplementedError:
        return None
